"""Pictures of heat and of plans, as PNG, or as a page that holds them and the tables in itself."""

from __future__ import annotations

import base64
import html
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.errors import MissingExtraError
from isotherm.observe.picture import HEAT_MAP, LOAD_MAP, OFF_COLOUR
from isotherm.replay.windows import continued
from isotherm.window import HeatWindow, layer_imbalance, overall_imbalance

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".html")
_WIDTH = 11.0
_DPI = 110
_TITLE_SIGNS = 9  # of a title, in an inch of a picture's width
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>body{{font-family:sans-serif;margin:2em;max-width:75em}}img{{max-width:100%}}pre{{overflow-x:auto}}</style>
</head><body><h1>{title}</h1>
<p><img alt="{title}" src="data:image/png;base64,{image}"></p>
<pre>{text}</pre>
</body></html>
"""


@dataclass
class HeatSeries:
    """What a picture of heat needs of every window, noted while others read them."""

    heat_KLE: Int64Array | None = None
    steps: list[int] = field(default_factory=list)
    hottest: list[float] = field(default_factory=list)
    rank_imbalance: list[float] = field(default_factory=list)

    def noting(self, windows: Iterable[HeatWindow]) -> Iterator[HeatWindow]:
        given, counted = tee(windows)
        for window, on in zip(given, continued(counted)):
            heat_KLE = window.heat_KSLE.sum(axis=1)
            self.heat_KLE = heat_KLE if self.heat_KLE is None else self.heat_KLE + heat_KLE
            self.steps.append(on.end_step)
            self.hottest.append(overall_imbalance(window.heat_LE))
            if window.slot_load_LGS is not None:
                self.rank_imbalance.append(overall_imbalance(window.load_LG))
            yield window


@dataclass(frozen=True, eq=False)
class PlanPicture:
    """What a picture of a plan shows.

    Attributes:
        heat_LE: what was planned for. layer_ids: the model's own numbers of the layers.
        before_LG, after_LG: loads of the ranks, of that heat.
        bound_L: no placement and shares do better.
        steps, before_N, after_N: imbalance of each window, as it ends, with both placements.
    """

    title: str
    heat_LE: Int64Array
    layer_ids: tuple[int, ...]
    before_LG: FloatArray
    after_LG: FloatArray
    bound_L: FloatArray
    steps: Sequence[int]
    before_N: Sequence[float]
    after_N: Sequence[float]


def check_picture(path: Path | None) -> None:
    """Raises before any work is done what `write_picture` would raise after it.

    Raises:
        ValueError: another suffix than those that are written.
        MissingExtraError: matplotlib is not installed.
    """
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"--plot {path}: give a name that ends in {' or '.join(SUFFIXES)}")
    _new_figure(1.0)


def write_picture(figure: Figure, path: Path, *, title: str, text: str) -> None:
    """Writes the figure, with ``text`` under it where it is a page. The file appears whole.

    Raises:
        ValueError: it cannot be written.
    """
    from isotherm.traces.files import write_whole

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # Names of files are written in all alphabets, and fonts do not know all of them.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(buffer, format="png")
    data = buffer.getvalue()
    if path.suffix.lower() == ".html":
        image = base64.b64encode(data).decode()
        page = _PAGE.format(title=html.escape(title), image=image, text=html.escape(text))
        data = page.encode(errors="replace")
    write_whole(path, data)


def draw_heat(title: str, series: HeatSeries, kinds: Sequence[str], layer_ids: Sequence[int]) -> Figure:
    """Heat maps of the kinds of tokens, rank profiles, and imbalance over time."""
    assert series.heat_KLE is not None, "windows were noted"
    named = list(zip(kinds, series.heat_KLE))
    shown = [(kind, heat_LE) for kind, heat_LE in named if heat_LE.any()] or named[:1]
    figure = _new_figure(8.0)
    put_title(figure, title)
    rows = figure.add_gridspec(2, 1, height_ratios=(1.5, 1.0))
    _draw_maps(figure, rows[0].subgridspec(1, len(shown)), shown, layer_ids)
    lower = rows[1].subgridspec(1, 2)
    _draw_profiles(figure.add_subplot(lower[0]), series.heat_KLE.sum(axis=0))
    axes = figure.add_subplot(lower[1])
    axes.plot(series.steps, series.hottest, color=OFF_COLOUR, marker=".", label="hottest expert / mean")
    if len(series.rank_imbalance) == len(series.steps):
        axes.plot(
            series.steps,
            series.rank_imbalance,
            color="black",
            marker=".",
            label="hottest rank / mean, as served",
        )
    _finish_time(axes)
    return figure


def draw_plan(picture: PlanPicture) -> Figure:
    """The heat, loads of the ranks before and after, and imbalance per layer and over time."""
    figure = _new_figure(9.5)
    put_title(figure, picture.title)
    rows = figure.add_gridspec(3, 1, height_ratios=(1.0, 1.0, 0.9))
    _draw_maps(
        figure, rows[0].subgridspec(1, 1), [("what was planned for", picture.heat_LE)], picture.layer_ids
    )
    _draw_loads(figure, rows[1].subgridspec(1, 2), picture)
    lower = rows[2].subgridspec(1, 2)
    _draw_layers(figure.add_subplot(lower[0]), picture)
    axes = figure.add_subplot(lower[1])
    axes.plot(picture.steps, picture.before_N, color=OFF_COLOUR, marker=".", label="before")
    axes.plot(picture.steps, picture.after_N, color="black", marker=".", label="after")
    _finish_time(axes)
    return figure


def put_title(figure: Figure, title: str) -> None:
    """Writes the title above the figure, in as many lines as it takes: names of files are long."""
    drawn = title.encode(errors="replace").decode()  # bytes of a name that are no text cannot be drawn
    figure.suptitle(fill(drawn, round(_TITLE_SIGNS * figure.get_figwidth())), fontsize=13, parse_math=False)


def _new_figure(height: float) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    return Figure(figsize=(_WIDTH, height), layout="constrained", dpi=_DPI)


def _draw_maps(
    figure: Figure, places: Any, named: Sequence[tuple[str, Int64Array]], layer_ids: Sequence[int]
) -> None:
    relative = [_relative(heat_LE) for _, heat_LE in named]
    # A few experts are far hotter than the rest; with them at the top of the scale all others look alike.
    highest = max(float(np.percentile(heat_LE, 99.5)) for heat_LE in relative)
    column = [figure.add_subplot(places[0, index]) for index in range(len(named))]
    for axes, (name, _), relative_LE in zip(column, named, relative):
        image = axes.imshow(
            relative_LE, aspect="auto", cmap=HEAT_MAP, vmin=0, vmax=max(highest, 1.0), interpolation="none"
        )
        axes.set_title(f"heat: {name}", fontsize=10, parse_math=False)
        axes.set_xlabel("expert")
        _label_layers(axes, layer_ids)
    figure.colorbar(image, ax=column, label="heat / layer mean", extend="max")


def _draw_profiles(axes: Axes, heat_LE: Int64Array) -> None:
    sorted_LE = np.sort(_relative(heat_LE), axis=1)[:, ::-1]
    low_E, middle_E, high_E = np.percentile(sorted_LE, (5, 50, 95), axis=0)
    rank_E = np.arange(1, len(middle_E) + 1)
    axes.fill_between(rank_E, low_E, high_E, color="#f2b48c", label="5 to 95 % of layers")
    axes.plot(rank_E, middle_E, color="#b5432a", label="median layer")
    axes.axhline(1, color="#cccccc", lw=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title("experts from hottest to coldest", fontsize=10)
    axes.set_xlabel("rank of the expert in its layer")
    axes.set_ylabel("heat / layer mean")
    axes.legend(fontsize=9)


def _draw_loads(figure: Figure, places: Any, picture: PlanPicture) -> None:
    from matplotlib.colors import TwoSlopeNorm

    named = (("before", _relative(picture.before_LG)), ("after", _relative(picture.after_LG)))
    spread = max(float(np.abs(load_LG - 1).max()) for _, load_LG in named) or 1e-9
    norm = TwoSlopeNorm(1.0, vmin=max(1 - spread, 0.0), vmax=1 + spread)
    column = [figure.add_subplot(places[0, index]) for index in range(2)]
    for axes, (name, load_LG) in zip(column, named):
        image = axes.imshow(load_LG, aspect="auto", cmap=LOAD_MAP, norm=norm, interpolation="none")
        axes.set_title(f"load of the ranks {name}", fontsize=10)
        axes.set_xlabel("rank")
        _label_layers(axes, picture.layer_ids)
    figure.colorbar(image, ax=column, label="load / layer mean")


def _draw_layers(axes: Axes, picture: PlanPicture) -> None:
    place_L = np.arange(len(picture.layer_ids))
    axes.plot(place_L, layer_imbalance(picture.before_LG), color=OFF_COLOUR, marker=".", label="before")
    axes.plot(place_L, layer_imbalance(picture.after_LG), color="black", marker=".", label="after")
    axes.plot(place_L, picture.bound_L, color="#2e86ab", ls=":", label="bound")
    shown = _ticks(len(picture.layer_ids))
    axes.set_xticks(shown, [str(picture.layer_ids[index]) for index in shown])
    axes.set_title("imbalance of each layer: hottest rank / mean", fontsize=10)
    axes.set_xlabel("layer")
    axes.set_ylabel("max / mean")
    axes.legend(fontsize=9)


def _finish_time(axes: Axes) -> None:
    axes.axhline(1, color="#cccccc", lw=0.8)
    axes.set_title("imbalance of each window, all layers", fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel("max / mean")
    axes.legend(fontsize=9)


def _label_layers(axes: Axes, layer_ids: Sequence[int]) -> None:
    shown = _ticks(len(layer_ids))
    axes.set_yticks(shown, [str(layer_ids[index]) for index in shown])
    axes.set_ylabel("layer")


def _ticks(count: int) -> list[int]:
    """At most ten places, the first among them."""
    return list(range(0, count, -(-count // 10)))


def _relative(values: Int64Array | FloatArray) -> FloatArray:
    out: FloatArray = values / np.maximum(values.mean(axis=1, keepdims=True), 1e-9)
    return out
