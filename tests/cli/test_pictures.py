"""Pictures that `isotherm inspect` and `isotherm plan` draw."""

from __future__ import annotations

import base64
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from test_files import EXPERTS, LAYERS, make_heat, run

import isotherm as iso
from isotherm.cli import plan_file
from isotherm.cli.pictures import HeatSeries, PlanPicture, put_title
from isotherm.window import overall_imbalance

PNG = b"\x89PNG\r\n\x1a\n"


def test_what_is_drawn_of_heat_is_what_the_windows_hold(tmp_path: Path) -> None:
    windows, series = list(iso.read_heat(make_heat(tmp_path))), HeatSeries()
    assert list(series.noting(iter(windows))) == windows
    assert (series.heat_KLE == sum(window.heat_KSLE.sum(axis=1) for window in windows)).all()
    assert series.steps == [8, 16, 24]
    assert series.hottest == [overall_imbalance(window.heat_LE) for window in windows]
    assert series.rank_imbalance == [overall_imbalance(window.load_LG) for window in windows]


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_inspect_draws_and_prints_as_without(tmp_path: Path, capsys, suffix: str) -> None:
    path, out = make_heat(tmp_path), tmp_path / f"out{suffix}"
    plain = run(capsys, "inspect", path)
    assert run(capsys, "inspect", path, "--plot", out) == plain
    check_picture_file(out, "Skew per layer")


def test_heat_of_zero_is_drawn_and_a_name_that_is_no_text_too(tmp_path: Path, capsys) -> None:
    path = tmp_path / os.fsdecode(b"some\xff.heat")
    with iso.HeatWriter(path, iso.HeatHeader((0, 1), 4, kinds=("all",))) as writer:
        writer.append(iso.HeatWindow(np.zeros((1, 1, 2, 4), int), None, (0, 1), [0], (0, 1)))
    for suffix in (".png", ".html"):
        picture = path.with_suffix(suffix)
        code, _, err = run(capsys, "inspect", path, "--plot", picture, "--json")
        assert (code, err) == (0, "")
        assert picture.exists()


def test_names_are_shown_as_they_are_whatever_signs_they_hold(tmp_path: Path, capsys) -> None:
    """Brackets are markup to tables, and dollars are formulas to pictures."""
    path, kinds = tmp_path / "a$y_{$[b].heat", ("[/a]", "[b]$y_{$")
    with iso.HeatWriter(path, iso.HeatHeader((0, 1), 4, kinds=kinds, model="[/m]$y_{$")) as writer:
        writer.append(iso.HeatWindow(np.ones((2, 1, 2, 4), int), None, (0, 1), [0, 0], (0, 1)))
    code, out, err = run(capsys, "inspect", path, "--plot", tmp_path / "out.png")
    assert (code, err) == (0, "")
    assert "[/a] / [b]$y_{$" in out
    assert "a$y_{$[b].heat: isotherm, [/m]$y_{$" in out


def test_a_long_title_stays_within_the_picture() -> None:
    for width in (7.6, 11.0):
        figure = Figure(figsize=(width, 5.0))
        put_title(figure, "a_very_long_name_of_a_file.heat: " + "WORDS and words, " * 12)
        renderer = FigureCanvasAgg(figure).get_renderer()
        box = figure.texts[0].get_window_extent(renderer)
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def check_picture_file(path: Path, table: str) -> None:
    """A picture; a page holds it and the table, and asks for nothing from elsewhere."""
    data = path.read_bytes()
    if path.suffix == ".html":
        text = data.decode()
        assert table in text
        assert not re.search(r"(src|href)=\"(?!data:)|https?://", text)
        found = re.search('base64,([^"]+)"', text)
        assert found is not None
        data = base64.b64decode(found[1])
    assert data.startswith(PNG)
    assert len(data) > 10_000


def test_plan_draws_loads_before_and_after(tmp_path: Path, capsys, monkeypatch) -> None:
    path, out = make_heat(tmp_path), tmp_path / "out.html"
    drawn: list[PlanPicture] = []
    real = plan_file.draw_plan
    monkeypatch.setattr(plan_file, "draw_plan", lambda picture: drawn.append(picture) or real(picture))
    code, _, err = run(
        capsys, "plan", path, "--ranks", 4, "--redundant", 4, "--policy", "deepseek", "--kind", "decode",
        "--out", tmp_path / "plan.npz", "--plot", out,
    )  # fmt: skip
    assert (code, err) == (0, "")
    check_picture_file(out, "Imbalance: hottest rank over the mean")
    (picture,) = drawn
    assert (picture.layer_ids, list(picture.steps)) == (LAYERS, [8, 16, 24])
    windows = list(iso.read_heat(path))
    assert (picture.heat_LE == sum(window.heat_KSLE[1].sum(axis=0) for window in windows)).all()
    # Before: slot p holds expert p % E, so the first four experts have two replicas.
    heat_LE = windows[1].heat_KSLE[1].sum(axis=0) / (1 + (np.arange(EXPERTS) < 4))
    load_LG = heat_LE[:, np.arange(12) % EXPERTS].reshape(3, 4, 3).sum(axis=2)
    assert picture.before_N[1] == pytest.approx(overall_imbalance(load_LG))
    assert np.mean(picture.after_N) < np.mean(picture.before_N)
    assert picture.before_LG.sum() == pytest.approx(picture.heat_LE.sum()) == picture.after_LG.sum()


def test_a_picture_that_cannot_be_is_told_before_any_work(tmp_path: Path, capsys, monkeypatch) -> None:
    path, out = make_heat(tmp_path), tmp_path / "plan.npz"
    plan = ("plan", path, "--ranks", 4, "--redundant", 4, "--out", out)
    code, _, err = run(capsys, *plan, "--plot", tmp_path / "out.gif")
    assert (code, "ends in .png or .html" in err) == (2, True)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for command in (("inspect", path), plan):
        code, printed, err = run(capsys, *command, "--plot", tmp_path / "out.png")
        assert (code, printed) == (2, "")
        assert err == (
            "isotherm: 'matplotlib' is not installed, and this needs it: pip install 'isotherm[plot]'\n"
        )
    assert not out.exists()


def test_a_placement_has_no_picture(tmp_path: Path, capsys) -> None:
    placement = iso.Placement.default(iso.MoEShape(3, EXPERTS, 2), iso.Topology(4, 3))
    iso.write_placement(placement, tmp_path / "own.npz", format="isotherm")
    code, _, err = run(capsys, "inspect", tmp_path / "own.npz", "--plot", tmp_path / "out.png")
    assert (code, "heat is what is drawn" in err) == (2, True)
    assert not (tmp_path / "out.png").exists()
