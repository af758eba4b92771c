"""Windows against a plain count, with ranks in threads over an in-memory link."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import heat_ranks
from heat_ranks import SHAPE, beat_all, in_threads, some_counts


@pytest.fixture
def make_ranks():
    made = []

    def make(count, **arguments):
        made.extend(heat_ranks.make_ranks(count, source="mapped", **arguments))
        return made[-count:]

    yield make
    for rank in made:
        rank.close()


def add_up(counted, end):
    """Heat and loads of all ranks in the steps before ``end``."""
    heat = sum(heat for row in counted for heat, _ in row[:end])
    slots = sum(slots for row in counted for _, slots in row[:end])
    return heat, slots


def check_windows(ranks, counted):
    """Every rank has the same windows, one behind the other, and they are what was counted."""
    for index, window in enumerate(ranks[0].windows):
        for rank in ranks:
            assert rank.windows[index].slice_steps == window.slice_steps
            assert (rank.windows[index].heat_KSLE == window.heat_KSLE).all()
            assert (rank.windows[index].slot_load_LGS == window.slot_load_LGS).all()
        heat, slots = add_up(counted, window.end_step)
        if window.start_step:
            heat_before, slots_before = add_up(counted, window.start_step)
            heat, slots = heat - heat_before, slots - slots_before
        assert (window.heat_KSLE.sum(1) == heat).all()
        assert (window.slot_load_LGS.reshape(slots.shape) == slots).all()
        assert window.layer_ids == SHAPE.layer_ids
        assert window.tokens_K.tolist() == [len(ranks) * window.steps, 0]
    ends = [0, *(window.end_step for window in ranks[0].windows)]
    assert ends == [*(window.start_step for window in ranks[0].windows), ends[-1]]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.data())
def test_windows_add_up_whatever_is_skipped_and_whenever_rounds_come(seed, count, data):
    """Ranks pass snapshot steps at different times, rounds come at any time: nothing is lost."""
    rng = np.random.default_rng(seed)
    ranks = heat_ranks.make_ranks(count, source="mapped")
    counted = [[some_counts(rng, count) for _ in range(12)] for _ in ranks]
    done = [0] * count
    while min(done) < 12:
        rank = data.draw(st.integers(-1, count - 1))
        if rank < 0:
            beat_all(ranks)
        elif done[rank] < 12:
            ranks[rank].add(*counted[rank][done[rank]])
            ranks[rank].end_step()
            done[rank] += 1
    beat_all(ranks)
    beat_all(ranks)
    check_windows(ranks, counted)
    for rank in ranks:
        rank.close()


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.data())
def test_windows_gathered_on_the_device_are_as_exact(seed, data):
    """Ranks make their steps together, as a device's order asks; their rounds come at any time, so rings
    fill on some ranks and not on others."""
    rng = np.random.default_rng(seed)
    ranks = heat_ranks.make_ranks(2, source="mapped", on_device=True)
    counted = [[] for _ in ranks]
    for _ in range(20):
        for rank, row in zip(ranks, counted, strict=True):
            row.append(some_counts(rng, 2))
            rank.add(*row[-1])
        ring, held = ranks[0].collector._ring, []
        if data.draw(st.booleans()):
            # One rank's buffers are all in use: it says so, and both ranks leave the snapshot out.
            held = [ring._free.try_take() for _ in range(4)]
        in_threads([rank.end_step for rank in ranks])
        for buffer in filter(None, held):
            ring._free.put(buffer)
        if data.draw(st.booleans()):
            beat_all(ranks)
    for rank, row in zip(ranks, counted, strict=True):
        row.append(some_counts(rng, 2))
        rank.add(*row[-1])
    beat_all(ranks)
    in_threads([rank.end_step for rank in ranks])
    beat_all(ranks)
    assert ranks[0].collector.gathered_step == 21
    check_windows(ranks, counted)
    for rank in ranks:
        rank.close()


def wrap(rank):
    """Lets every total of the rank stand at 2^32 - 5, and takes that for what was gathered last."""
    rank.collector.totals.rows_MW.fill_(-5)
    rank.collector.gather._exchange._base_W[:] = -5


def test_totals_that_wrap_at_two_to_the_32_make_right_differences(make_ranks):
    ranks = make_ranks(2, window_steps=1)
    rng = np.random.default_rng(0)
    counts = [some_counts(rng, 2) for _ in ranks]
    for rank, (heat, slots) in zip(ranks, counts, strict=True):
        wrap(rank)
        rank.add(heat, slots)
        rank.end_step()
    beat_all(ranks)
    window = ranks[1].windows[-1]
    assert (window.heat_KSLE[:, 0] == sum(heat for heat, _ in counts)).all()
    assert (window.slot_load_LGS.reshape(2, 8) == sum(slots for _, slots in counts)).all()


def test_sums_beyond_four_bytes_travel_in_eight(make_ranks):
    ranks = make_ranks(2, window_steps=1)
    for rank in ranks:
        heat, slots = np.zeros((2, 2, 4), np.int64), np.zeros((2, 8), np.int64)
        heat[0, 1, 2] = slots[1, 3] = 2**31 - 1
        rank.add(heat, slots)
        rank.end_step(2**31 - 1)
    beat_all(ranks)
    window = ranks[0].windows[0]
    assert window.heat_KSLE[0, 0, 1, 2] == 2 * (2**31 - 1)
    assert window.slot_load_LGS[1, 0, 3] == 2 * (2**31 - 1)
    assert window.tokens_K[0] == 2 * (2**31 - 1)


def test_a_full_ring_skips_and_loses_nothing(make_ranks):
    (rank,) = make_ranks(1, window_steps=1)
    rng = np.random.default_rng(1)
    counted = [some_counts(rng, 1) for _ in range(8)]
    for step in range(7):
        rank.add(*counted[step])
        rank.end_step()
    assert rank.collector.skipped_snapshots == 3
    beat_all([rank])
    rank.add(*counted[7])
    rank.end_step()
    beat_all([rank])
    assert [window.slice_steps for window in rank.windows] == [(0, 4), (4, 8)]
    check_windows([rank], [counted])


def test_an_empty_window_is_zero_and_finite(make_ranks):
    ranks = make_ranks(2, window_steps=1)
    for rank in ranks:
        rank.end_step(0)
    beat_all(ranks)
    window = ranks[0].windows[0]
    assert not window.heat_KSLE.any()
    assert not window.load_LG.any()
    assert window.tokens_K.tolist() == [0, 0]


def test_bytes_of_a_window_are_those_of_the_heat_and_little_more(make_ranks):
    """Four bytes a count of each slice, the loads once, and headers."""
    ranks = make_ranks(2, window_steps=2)
    rng = np.random.default_rng(2)
    heart = ranks[0].heartbeat
    for _ in range(2):
        for rank in ranks:
            rank.add(*some_counts(rng, 2))
            rank.end_step()
        beat_all(ranks)
    assert len(ranks[0].windows) == 1
    heat_bytes = 2 * 4 * (2 * SHAPE.layers * SHAPE.experts + 2)
    load_bytes = 4 * SHAPE.layers * 8
    assert heart._link.sent_bytes == heat_bytes + load_bytes + heart.rounds * heart._words_W.nbytes
