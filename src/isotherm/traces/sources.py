"""A file of another system, and what its user says about it where the file does not."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from isotherm.arrays import BoolArray, Int64Array
from isotherm.placement import Placement
from isotherm.traces.problems import problem

ROWS_PER_WINDOW = 256

LARGEST_LAYERS = 2**14
"""Of a model; a placement may have a row for each."""


@dataclass(frozen=True)
class Source:
    """A file to read.

    Attributes:
        path: the file or folder.
        moe_layers: the model's numbers of its MoE layers, ascending; None: what the file says.
        model_layers: all layers of the model, dense ones too; None: what the file says.
        top_k: experts that a token picks; None: what the file says.
        rows_per_window: of files with one row per forward pass, so many rows make a window.

    Raises:
        ValueError: a number below 1, or layers out of order.
    """

    path: Path
    moe_layers: tuple[int, ...] | None = None
    model_layers: int | None = None
    top_k: int | None = None
    rows_per_window: int = ROWS_PER_WINDOW

    def __post_init__(self) -> None:
        for name in ("model_layers", "top_k", "rows_per_window"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name}={value} is below 1: give a positive number")
        layers = self.moe_layers
        if layers is None:
            return
        if not layers or layers[0] < 0 or any(a >= b for a, b in pairwise(layers)):
            raise ValueError(f"moe_layers={layers} must be ascending layer numbers from 0")
        if self.model_layers is not None and layers[-1] >= self.model_layers:
            raise ValueError(f"moe_layers end at {layers[-1]}, model_layers={self.model_layers} before that")

    def check_said(self, layer_ids: tuple[int, ...], model_layers: int | None) -> None:
        """What is said about a file that says it itself must be the same: nothing is passed over in silence.

        Raises:
            ValueError: the file has other ``layer_ids``, or another number of all layers.
        """
        if self.moe_layers not in (None, layer_ids):
            raise problem(
                self.path, "", f"numbers its layers itself, {in_spans(layer_ids)}, and these are not the "
                f"layers asked for, {in_spans(self.moe_layers)}"
            )  # fmt: skip
        if self.model_layers is not None and model_layers not in (None, self.model_layers):
            raise problem(
                self.path, "", f"has {model_layers} layers in all, not model_layers={self.model_layers}: "
                "leave it out, or give moe_layers, where its rows are not all layers of the model"
            )  # fmt: skip

    def name_rows(self, filled_R: BoolArray) -> NamedRows:
        """Which rows of a matrix are MoE layers, and their numbers in the model. ``filled_R``: the rows
        that hold any heat.

        Raises:
            ValueError: the rows are not those of ``moe_layers`` or of ``model_layers``.
        """
        rows = len(filled_R)
        if self.moe_layers is not None:
            return self._named(filled_R, self.moe_layers)
        if self.model_layers is not None and rows != self.model_layers:
            raise problem(
                self.path, "", f"{rows} rows are not model_layers={self.model_layers}: give moe_layers too, "
                "the layers that the rows belong to"
            )  # fmt: skip
        kept = tuple(np.flatnonzero(filled_R).tolist())
        if not kept:
            raise problem(self.path, "", f"none of its {rows} layers has any heat")
        left = tuple(np.flatnonzero(~filled_R).tolist())
        notes = (
            (f"layers {in_spans(left)} have no heat and are left out: dense, or never used",) if left else ()
        )
        # Where rows were left out the file counted all layers, dense ones too.
        return NamedRows(np.array(kept), kept, rows if left else self.model_layers, notes)

    def _named(self, filled_R: BoolArray, moe_layers: tuple[int, ...]) -> NamedRows:
        rows = len(filled_R)
        if rows == len(moe_layers):
            picked = np.arange(rows)
        elif moe_layers[-1] < rows:
            picked = np.array(moe_layers)
        else:
            raise problem(
                self.path, "", f"{rows} rows are neither the {len(moe_layers)} of moe_layers="
                f"{in_spans(moe_layers)} nor all layers of a model that has these"
            )  # fmt: skip
        others = np.setdiff1d(np.flatnonzero(filled_R), picked)
        if len(others):
            raise problem(
                self.path, f"layer {others[0]}", f"has heat and is not in moe_layers={in_spans(moe_layers)}"
            )
        cold = tuple(moe_layers[index] for index in np.flatnonzero(~filled_R[picked]))
        notes = (f"layers {in_spans(cold)} have no heat",) if cold else ()
        model_layers = rows if rows != len(moe_layers) else self.model_layers
        return NamedRows(picked, moe_layers, model_layers, notes)


@dataclass(frozen=True, eq=False)
class NamedRows:
    """Rows of a matrix that are MoE layers: which, their numbers, and all layers of the model."""

    rows: Int64Array
    layer_ids: tuple[int, ...]
    model_layers: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class PlacementFile:
    """A placement as a file holds it.

    Attributes:
        placement: what each slot holds.
        layer_ids: the model's own numbers of the layers.
        ranks: over how many ranks the slots lie; None where the file does not say.
        model_layers: all layers of the model; None where it does not say.
        notes: what was left out or taken for granted, in words.

    Raises:
        ValueError: layers or ranks that do not fit the placement.
    """

    placement: Placement
    layer_ids: tuple[int, ...]
    ranks: int | None = None
    model_layers: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        layers, slots = self.placement.slot_to_expert.shape
        ascending = all(a < b for a, b in pairwise((-1, *self.layer_ids)))
        if len(self.layer_ids) != layers or not ascending:
            raise ValueError(f"layer_ids={self.layer_ids} must be {layers} ascending layer numbers from 0")
        if self.ranks is not None and (self.ranks < 1 or slots % self.ranks):
            raise ValueError(f"{slots} slots do not divide over ranks={self.ranks}")
        if self.model_layers is not None and self.layer_ids[-1] >= self.model_layers:
            raise ValueError(
                f"model_layers={self.model_layers} do not hold layer {self.layer_ids[-1]}: count all layers"
            )
        if self.model_layers is not None and self.model_layers > LARGEST_LAYERS:
            raise ValueError(
                f"model_layers={self.model_layers} is above {LARGEST_LAYERS}, which no model has"
            )


def in_spans(layers: tuple[int, ...]) -> str:
    """Ascending numbers in words: ``0-2, 5``."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and parts[-1][1] == layer - 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(f"{first}-{last}" if first != last else f"{first}" for first, last in parts)
