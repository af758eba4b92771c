"""What a search writes down on its way, so that somebody may go a part of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.layers.layer import Layer, peak_of


class Log(NamedTuple):
    """In row ``k``: slot ``slot_K[k]`` got expert ``expert_K[k]``, the highest load was ``peak_K[k]`` then
    (infinite between the two halves of one change: no place to stop), and ``moves_K[k]`` slots differed from
    ``start_P``.
    ``rows_1[0]`` rows are in use. A log without any is one that nobody reads."""

    start_P: Int64Array
    slot_K: Int64Array
    expert_K: Int64Array
    peak_K: FloatArray
    moves_K: Int64Array
    rows_1: Int64Array


@kernel
def new_log(start_P: Int64Array, rows: int) -> Log:
    return Log(
        start_P,
        np.zeros(rows, np.int64),
        np.zeros(rows, np.int64),
        np.zeros(rows),
        np.zeros(rows, np.int64),
        np.zeros(1, np.int64),
    )


@kernel
def is_read(log: Log) -> bool:
    return len(log.slot_K) > 0


@kernel
def is_full(log: Log) -> bool:
    """Whether another change of two slots might not find room."""
    return is_read(log) and log.rows_1[0] + 2 > len(log.slot_K)


@kernel
def note(layer: Layer, slot: int, other: int, log: Log) -> None:
    """Notes what the slot holds now, and the other one, unless it is -1. Loads must be settled."""
    if not is_read(log):
        return
    if other >= 0:
        note_row(layer, slot, np.inf, log)
        note_row(layer, other, peak_of(layer), log)
    else:
        note_row(layer, slot, peak_of(layer), log)


@kernel
def note_row(layer: Layer, slot: int, peak: float, log: Log) -> None:
    k, moves = log.rows_1[0], 0
    for each in range(len(log.start_P)):
        moves += layer.slot_P[each]["expert"] != log.start_P[each]
    log.slot_K[k], log.expert_K[k], log.peak_K[k] = slot, layer.slot_P[slot]["expert"], peak
    log.moves_K[k] = moves
    log.rows_1[0] = k + 1
