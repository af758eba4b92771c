"""Windows of other lengths, and batches made of single tokens, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from isotherm.replay.batches import decode_steps, read_batches
from isotherm.replay.windows import continued, one_kind, rewindowed, whole_windows
from isotherm.traces.sources import Source
from isotherm.window import HeatWindow
from replay.made import drifting_windows


def heat_of(windows):
    return sum(window.heat_LE for window in windows)


def test_steps_that_are_counted_anew_go_on_and_gaps_stay():
    def spans(steps):
        heat = np.ones((1, 2, 1, 2), int)
        made = [HeatWindow(heat, None, (start, start + 1, end), [1], (0,)) for start, end in steps]
        return [window.slice_steps for window in continued(made)]

    assert spans([(0, 4), (6, 8)]) == [(0, 1, 4), (6, 7, 8)]
    assert spans([(0, 4), (0, 5), (7, 9), (2, 4)]) == [(0, 1, 4), (4, 5, 9), (11, 12, 13), (13, 14, 15)]


@pytest.mark.parametrize(("steps", "lengths"), [(4, [4] * 12), (8, [8] * 6), (10, [12] * 4), (16, [16] * 3)])
def test_windows_are_made_of_whole_slices(steps, lengths):
    windows = drifting_windows(6)
    made = list(rewindowed(windows, steps))
    assert [window.steps for window in made] == lengths
    assert (heat_of(made) == heat_of(windows)).all()
    assert sum(window.tokens_K for window in made) == sum(window.tokens_K for window in windows)
    borders = [step for window in made for step in window.slice_steps[:-1]]
    assert borders == [step for window in windows for step in window.slice_steps[:-1]]
    assert all(window.slot_load_LGS is None for window in made)


def test_what_is_left_over_at_the_end_or_at_a_gap_is_left_out():
    windows = drifting_windows(6)
    assert [(w.start_step, w.end_step) for w in rewindowed(windows, 20)] == [(0, 20), (20, 40)]
    del windows[2]
    assert [(w.start_step, w.end_step) for w in rewindowed(windows, 12)] == [(0, 12), (24, 36), (36, 48)]


def test_one_kind_alone():
    heat = np.arange(2 * 1 * 2 * 3).reshape(2, 1, 2, 3)
    (window,) = one_kind([HeatWindow(heat, None, (0, 5), [7, 9], (0, 1))], 1)
    assert (window.heat_LE == heat[1, 0]).all()
    assert window.tokens_K.tolist() == [9]


def save(folder, *, offsets=None, tokens=60, layers=2, experts=5):
    rng = np.random.default_rng(3)
    ids = np.argsort(rng.random((tokens, layers, experts)), axis=2)[..., :2].astype(np.int8)
    ids[7, 0, 1] = -1
    ids[0, 0, 0] = experts - 1
    path = folder / "ids.npz"
    np.savez(path, experts=ids, **({} if offsets is None else {"offsets": offsets}))
    return path, ids


def counted(ids_TLK, experts):
    heat_LE = np.zeros((ids_TLK.shape[1], experts), int)
    for layer in range(ids_TLK.shape[1]):
        for expert in ids_TLK[:, layer].ravel():
            heat_LE[layer, expert] += expert >= 0
    return heat_LE


def test_tokens_as_they_come_make_batches(tmp_path):
    path, ids = save(tmp_path)
    trace = read_batches(Source(path), batch_tokens=8, window_steps=3)
    assert len(trace) == 2  # 7 full batches of 8
    for number, window in enumerate(trace):
        assert window.slice_steps == tuple(range(3 * number, 3 * number + 4))
        for step, heat_LE in enumerate(window.heat_SLE, 3 * number):
            assert (heat_LE == counted(ids[8 * step : 8 * step + 8], 5)).all()
    assert trace[1].tokens_K.tolist() == [24]
    assert trace[-1].slice_steps == trace[1].slice_steps
    assert len(trace[0:2]) == 2
    assert "7 batches of 8 tokens, tokens as they come; 5 experts" in trace.notes[0]


def test_a_short_trace_is_cut_into_eighths(tmp_path):
    assert [whole_windows(steps, 256) for steps in (1, 7, 8, 17, 2047, 2048, 10**6)] == [
        1, 1, 1, 2, 255, 256, 256
    ]  # fmt: skip
    path, _ = save(tmp_path)
    trace = read_batches(Source(path), batch_tokens=3)  # 20 batches
    assert [window.slice_steps for window in trace[:2]] == [(0, 1, 2), (2, 3, 4)]
    assert len(trace) == 10


def test_requests_are_decoded_side_by_side(tmp_path):
    offsets = np.array([0, 20, 24, 30, 60])
    path, ids = save(tmp_path, offsets=offsets)
    step_T, steps = decode_steps(offsets, 2)
    # Requests 0 and 1 begin; 2 takes the place of 1 at step 4, and 3 that of 2 at step 10.
    starts = [0, 0, 4, 10]
    expected = np.concatenate([start + np.arange(n) for start, n in zip(starts, np.diff(offsets))])
    assert (step_T == expected).all()
    assert steps == 20  # request 0 has ended, and no other waits
    trace = read_batches(Source(path), batch_tokens=2, window_steps=10)
    for window in trace:
        assert window.tokens_K.tolist() == [20]
        for step, heat_LE in enumerate(window.heat_SLE, window.start_step):
            assert (heat_LE == counted(ids[step_T == step], 5)).all()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"other": np.zeros(3)}, "holds no array experts"),
        ({"experts": np.zeros((4, 2))}, "whole numbers"),
        ({"experts": np.full((4, 1, 1), -2)}, "ids must be from -1"),
        ({"experts": np.zeros((4, 1, 1), int), "offsets": np.array([0, 3, 2, 4])}, "offsets: must ascend"),
        ({"experts": np.zeros((4, 1, 1), int), "offsets": np.array([0, 5])}, "offsets: must ascend"),
        ({"experts": np.zeros((9, 1, 2), int)}, "tokens that pick 2 of 1 experts are none"),
        ({"experts": np.zeros((4, 1, 1), int)}, "4 tokens make 2 full batches of 2, less than a window of 3"),
    ],
)
def test_files_that_hold_no_batches_are_told(tmp_path, arrays, message):
    path = tmp_path / "ids.npz"
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        read_batches(Source(path), batch_tokens=2, window_steps=3)
