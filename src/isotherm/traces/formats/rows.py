"""Rows of slots as placements, and placements as the rows that an engine wants."""

from __future__ import annotations

from typing import Any

import numpy as np

from isotherm.placement import EMPTY, Placement
from isotherm.traces.matrices import numbers_of
from isotherm.traces.problems import problem
from isotherm.traces.sources import PlacementFile, Source

LARGEST_EXPERTS = 2**20


def placement_of(
    rows: Any,
    source: Source,
    place: str,
    *,
    layer_ids: tuple[int, ...] | None = None,
    experts: int | None = None,
    ranks: int | None = None,
) -> PlacementFile:
    """The placement in rows [layers, slots] of experts. ``layer_ids``: the file names them; otherwise rows
    are the user's ``moe_layers``, or numbered from 0. ``experts``: None: the largest and one more.

    Raises:
        ValueError: the rows are no placement; the message names file, layer and rule.
    """
    slot_to_expert_LP = numbers_of(rows, source, place)
    if slot_to_expert_LP.ndim != 2 or not slot_to_expert_LP.size or slot_to_expert_LP.dtype.kind == "f":
        raise problem(source.path, place, "must be whole numbers [layers, slots]")
    if int(slot_to_expert_LP.max()) >= LARGEST_EXPERTS or int(slot_to_expert_LP.min()) < EMPTY:
        raise problem(source.path, place, f"experts must be from {EMPTY} (empty) to {LARGEST_EXPERTS - 1}")
    experts = int(slot_to_expert_LP.max()) + 1 if experts is None else experts
    if not 1 <= experts <= LARGEST_EXPERTS:
        raise problem(source.path, place, f"{experts} experts; there must be from 1 to {LARGEST_EXPERTS}")
    total = len(slot_to_expert_LP)
    notes: tuple[str, ...] = ()
    if layer_ids is None:
        slot_to_expert_LP, layer_ids, notes = _named(slot_to_expert_LP, source, place)
    try:
        placement = Placement(slot_to_expert_LP.astype(np.int64), experts)
        model_layers = total if total > len(layer_ids) else source.model_layers
        return PlacementFile(placement, layer_ids, ranks, model_layers, notes)
    except ValueError as error:
        raise problem(source.path, place, str(error)) from error


def _named(
    slot_to_expert_LP: np.ndarray, source: Source, place: str
) -> tuple[np.ndarray, tuple[int, ...], tuple[str, ...]]:
    total, wanted = len(slot_to_expert_LP), source.moe_layers
    if wanted is None and source.model_layers not in (None, total):
        raise problem(
            source.path, place, f"{total} rows are not model_layers={source.model_layers}: give moe_layers "
            "too, the layers that the rows belong to"
        )  # fmt: skip
    if wanted is None:
        return slot_to_expert_LP, tuple(range(total)), ("layers are numbered from 0: the file names none",)
    if total == len(wanted):
        return slot_to_expert_LP, wanted, ()
    if wanted[-1] >= total:
        raise problem(source.path, place, f"{total} rows do not fit {len(wanted)} moe_layers to {wanted[-1]}")
    return slot_to_expert_LP[list(wanted)], wanted, ()


def filled_rows(file: PlacementFile, engine: str) -> list[list[int]]:
    """The experts of every slot, row by row, for an engine that knows no empty slots.

    Raises:
        ValueError: a slot is empty.
    """
    empty = np.argwhere(file.placement.slot_to_expert == EMPTY)
    if len(empty):
        layer, slot = empty[0]
        raise ValueError(
            f"layer {file.layer_ids[layer]}, slot {slot} is empty, and {engine} knows no empty slots: "
            "plan anew"
        )
    rows: list[list[int]] = file.placement.slot_to_expert.tolist()
    return rows


def is_row_of_experts(row: Any) -> bool:
    return isinstance(row, list) and bool(row) and all(type(expert) is int for expert in row)
