"""Ids of experts per token, against a count one by one."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from isotherm.traces.detection import detect_format
from isotherm.traces.files import read_heat, read_placement

LAYERS, EXPERTS, PICKS = 3, 6, 2


def some_ids(tokens: int, dtype: type = np.int16) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.argsort(rng.random((tokens, LAYERS, EXPERTS)), axis=2)[..., :PICKS].astype(dtype)


def save_ids(path: Path, ids_TLK: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, ids_TLK)
    else:
        np.savez_compressed(path, offsets=np.arange(3), experts=ids_TLK)
    return path


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch) -> None:
    monkeypatch.setattr("isotherm.traces.formats.token_ids.TOKENS_PER_WINDOW", 10)


@pytest.mark.parametrize("name", ["some.npz", "some.npy"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, ">i4"])
def test_each_pick_counts_once_in_its_window(tmp_path: Path, name: str, dtype) -> None:
    ids_TLK = some_ids(37, dtype)
    path = save_ids(tmp_path / name, ids_TLK)
    if path.suffix == ".npz":
        assert detect_format(path) == "token-ids"
    trace = read_heat(path, format="token-ids")
    expected = np.zeros((4, LAYERS, EXPERTS), int)
    for token, layer, pick in np.ndindex(ids_TLK.shape):
        expected[token // 10, layer, ids_TLK[token, layer, pick]] += 1
    assert [window.heat_LE.tolist() for window in trace] == expected.tolist()
    assert [window.slice_steps for window in trace] == [(0, 10), (10, 20), (20, 30), (30, 37)]
    assert [window.tokens_K.tolist() for window in trace] == [[10], [10], [10], [7]]
    assert trace.header.top_k == PICKS
    assert [window.slice_steps for window in trace[1:3]] == [(10, 20), (20, 30)]
    assert trace[-1].heat_LE.tolist() == expected[3].tolist()
    assert {block_LE.dtype for block_LE in trace.windows.blocks} == {np.dtype(np.int32)}


def test_no_expert_counts_nothing_and_layers_without_picks_are_left_out(tmp_path: Path) -> None:
    ids_TLK = some_ids(12)
    ids_TLK[:, 1] = -1
    ids_TLK[5:] = -1
    trace = read_heat(save_ids(tmp_path / "some.npz", ids_TLK))
    assert trace.layer_ids == (0, 2)
    assert trace.notes[1].startswith("layers 1 have no heat")
    assert trace[0].heat_LE.sum() == 5 * 2 * PICKS
    assert trace[1].heat_LE.sum() == 0


def test_windows_that_know_fewer_experts_are_as_wide_as_the_others(tmp_path: Path) -> None:
    ids_TLK = np.zeros((20, 1, 1), int)
    ids_TLK[13] = 4
    trace = read_heat(save_ids(tmp_path / "some.npz", ids_TLK))
    assert [window.heat_LE.tolist() for window in trace] == [[[10, 0, 0, 0, 0]], [[9, 0, 0, 0, 1]]]


@pytest.mark.parametrize(
    ("ids_TLK", "said"),
    [
        (np.full((15, 2, 1), -2), "token 0, layer 0: ids must be from -1"),
        (np.where(np.arange(15)[:, None, None] == 13, 1 << 40, 0), "token 13, layer 0: ids must be"),
        (np.zeros((5, 2)), "must be whole numbers"),
        (np.zeros((5, 2, 1)), "must be whole numbers"),
        (np.zeros((0, 2, 1), int), "must be whole numbers"),
        (np.zeros((2, 100, 100), int), "more than 4096"),
        (np.zeros((4, 2, 3), int), "pick 3 of 1 experts"),
        (np.full((4, 2, 1), -1), "pick 1 of 0 experts"),
    ],
)
def test_what_are_no_ids_is_told(tmp_path: Path, ids_TLK: np.ndarray, said: str) -> None:
    path = save_ids(tmp_path / "some.npz", ids_TLK)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: experts.*{said}"):
        read_heat(path)


def test_a_file_cut_anywhere_is_one_error(tmp_path: Path) -> None:
    for name in ("some.npz", "some.npy"):
        path = save_ids(tmp_path / name, some_ids(25))
        whole = path.read_bytes()
        for length in range(0, len(whole), 11):
            path.write_bytes(whole[:length])
            with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}"):
                read_heat(path, format="token-ids")


def test_ids_are_no_placement(tmp_path: Path) -> None:
    path = save_ids(tmp_path / "some.npz", some_ids(5))
    with pytest.raises(ValueError, match="holds heat and no placement"):
        read_placement(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(ValueError, match="holds no array experts"):
        read_heat(path, format="token-ids")
