"""Pictures of heat and load, drawn with matplotlib (the extra ``plot``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHIFT_COLOUR = "#d1495b"
PUBLISH_COLOUR = "#2e86ab"
OFF_COLOUR = "#9a9a9a"
HEAT_MAP = "inferno"
LOAD_MAP = "RdBu_r"


@dataclass(frozen=True, eq=False)
class RunPicture:
    """What a picture of a balanced run shows.

    Attributes:
        heats: named int64 [layers, experts]: one heat map each.
        load_NG: float64 [steps, ranks], load of each rank over the mean of its step.
        imbalance_N, off_imbalance_N: float64 [steps], with balancing, and without.
        shifts, publications: steps at which traffic changed, and at which new tables were in force.
        layer_ids: the model's own numbers of the layers.
    """

    heats: tuple[tuple[str, Int64Array], ...]
    load_NG: FloatArray
    imbalance_N: FloatArray
    off_imbalance_N: FloatArray
    shifts: tuple[int, ...]
    publications: tuple[int, ...]
    layer_ids: tuple[int, ...]
    title: str


def draw_run(picture: RunPicture, path: Path) -> None:
    """Writes ``picture`` as PNG (or what the suffix of ``path`` says).

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    figure = Figure(figsize=(11, 8.6), layout="constrained", dpi=110)
    figure.suptitle(picture.title, fontsize=13)
    rows = figure.add_gridspec(3, max(len(picture.heats), 1), height_ratios=(1.0, 1.25, 1.35))
    highest = max(float(_relative(heat).max()) for _, heat in picture.heats)
    for column, (name, heat_LE) in enumerate(picture.heats):
        axes = figure.add_subplot(rows[0, column])
        image = _draw_heat(axes, name, heat_LE, highest, picture.layer_ids)
        if column == len(picture.heats) - 1:
            figure.colorbar(image, ax=axes, label="heat / layer mean")
    axes = figure.add_subplot(rows[1, :])
    figure.colorbar(_draw_load(axes, picture), ax=axes, label="load / mean")
    _draw_imbalance(figure.add_subplot(rows[2, :], sharex=axes), picture)
    figure.savefig(path)


def _relative(heat_LE: Int64Array) -> FloatArray:
    relative_LE: FloatArray = heat_LE / np.maximum(heat_LE.mean(axis=1, keepdims=True), 1e-9)
    return relative_LE


def _draw_heat(axes: Axes, name: str, heat_LE: Int64Array, highest: float, layer_ids: Sequence[int]) -> Any:
    image = axes.imshow(
        _relative(heat_LE), aspect="auto", cmap=HEAT_MAP, vmin=0, vmax=highest, interpolation="none"
    )
    axes.set_title(f"heat of {name}", fontsize=10)
    axes.set_xlabel("expert")
    axes.set_yticks(range(len(layer_ids)), [str(number) for number in layer_ids])
    axes.set_ylabel("layer")
    return image


def _draw_load(axes: Axes, picture: RunPicture) -> Any:
    steps, ranks = picture.load_NG.shape
    spread = max(float(np.abs(picture.load_NG - 1).max()), 0.05)
    image = axes.imshow(
        picture.load_NG.T,
        aspect="auto",
        cmap=LOAD_MAP,
        vmin=1 - spread,
        vmax=1 + spread,
        extent=(0, steps, ranks - 0.5, -0.5),
        interpolation="none",
    )
    axes.set_title("load of each rank, all layers", fontsize=10)
    axes.set_ylabel("rank")
    axes.set_yticks(range(ranks))
    _mark(axes, picture)
    return image


def _draw_imbalance(axes: Axes, picture: RunPicture) -> None:
    steps = np.arange(len(picture.imbalance_N)) + 0.5
    axes.plot(steps, picture.off_imbalance_N, color=OFF_COLOUR, lw=1.2, label="balancing off")
    axes.plot(steps, picture.imbalance_N, color="black", lw=1.6, label="with Isotherm")
    axes.axhline(1, color="#cccccc", lw=0.8)
    axes.set_title("imbalance of each step: hottest rank / mean, all layers", fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylabel("max / mean")
    _mark(axes, picture, labels=True)
    # Below the line of balancing off, above the spikes.
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.9), fontsize=9, ncols=4)


def _mark(axes: Axes, picture: RunPicture, *, labels: bool = False) -> None:
    """Lines where traffic changed and where new tables came into force."""
    for number, step in enumerate(picture.publications):
        label = "new tables in force" if labels and number == 0 else None
        axes.axvline(step, color=PUBLISH_COLOUR, lw=0.9, ls=":", label=label)
    for number, step in enumerate(picture.shifts):
        label = "traffic shifts" if labels and number == 0 else None
        axes.axvline(step, color=SHIFT_COLOUR, lw=1.8, label=label)
