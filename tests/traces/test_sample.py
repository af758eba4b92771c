"""The heat that ships: there after an install, small, and what examples/record_sample.py says it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

import isotherm as iso
from isotherm.cli.main import main
from isotherm.traces.detection import detect_format, located
from isotherm.traces.skew import cosines, measure_skew

ROOT = Path(__file__).parent.parent.parent


def test_the_sample_is_part_of_the_package_and_small() -> None:
    path = located("sample")
    assert path.stat().st_size < 200_000
    package = ROOT / "src" / "isotherm"
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert path.relative_to(package).as_posix() in shipped["isotherm"]


def test_the_sample_is_heat_of_eight_ranks_with_every_window_whole() -> None:
    trace = iso.read_heat("sample")
    assert detect_format(Path("sample")) == "isotherm"
    assert (trace.header.experts, trace.header.top_k, trace.layer_ids) == (32, 4, (0, 1, 2, 3))
    assert trace.header.topology == iso.Topology(ranks=8, slots_per_rank=5)
    assert not trace.notes
    assert [window.slice_steps for window in trace] == [(s, s + 25, s + 50) for s in range(0, 2400, 50)]
    for window in trace:
        # 8 sequences on each of 8 ranks: a prompt of 96 bytes and 24 written, twice.
        assert window.tokens_K.tolist() == [2 * 64 * 96, 2 * 64 * 24]
        assert (window.heat_KSLE.sum(axis=3) == 4 * window.tokens_K[:, None, None] // 2).all()
        assert (window.load_LG.sum(axis=1) == window.heat_LE.sum(axis=1)).all()
    assert trace.placement_in_force(0) == iso.Placement.default(iso.MoEShape(4, 32, 4), trace.header.topology)


def test_the_text_of_the_sample_fades_into_code_and_turns_back_at_once() -> None:
    trace = iso.read_heat("sample")
    cosines = {each.window: each.cosine for each in measure_skew(trace.header, trace).drift}
    moving = sorted(cosines, key=cosines.__getitem__)[:6]
    assert moving[0] == 40
    assert set(moving[1:]) == {20, 21, 22, 23, 24}
    assert np.median(list(cosines.values())) > 0.999


def test_prefill_and_decode_use_other_experts_while_prose_is_read_and_code_written() -> None:
    cosines_W = []
    for window in iso.read_heat("sample"):
        prefill_LE, decode_LE = window.heat_KSLE.sum(axis=1)
        cosines_W.append(cosines(prefill_LE, decode_LE).mean())
    prose_is_read = [*cosines_W[:20], *cosines_W[40:]]
    assert max(prose_is_read) < 0.95 < 0.99 < min(cosines_W[25:40])


def test_a_file_of_that_name_goes_before_the_one_that_ships(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert located("sample").name == "sample.heat"
    np.save(tmp_path / "own.npy", np.ones((2, 4), int))
    (tmp_path / "own.npy").rename(tmp_path / "sample")
    assert iso.read_heat("sample").header.experts == 4


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "sample"),
        ("plan", "sample", "--policy", "deepseek", "--out", "out.npz"),
        ("convert", "sample", "out.heat", "--format", "heat"),
        ("synth", "out.heat", "--like", "sample", "--windows", "2"),
    ],
    ids=lambda command: command[0],
)
def test_commands_take_the_sample(tmp_path: Path, monkeypatch, capsys, command: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(list(command)) == 0
    assert capsys.readouterr().err == ""
