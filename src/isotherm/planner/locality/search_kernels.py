"""From what is loaded: redundant slots given to experts that many pairs want there, and slots traded between
nodes, while that keeps more pairs near and no rank passes a load.

Heat comes in units of the mean load of a rank.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.locality.split_kernels import TOLERANCE, Split, level_down, near_pairs, new_split

LEAST_GAIN = 1e-4
"""Each slot that changes keeps at least this part of its layer's pairs on their node."""
TRIALS = 16
"""Changes tried in each step, those first that promise most."""


class Changes(NamedTuple):
    """Changes that promise most, best first: slot ``slot_T`` gets the expert of ``expert_T``, and, where that
    came from slot ``back_T`` in a trade, that slot what it held; -1 for none. ``gain_T`` is promised for each
    slot that changes."""

    gain_T: FloatArray
    slot_T: Int64Array
    expert_T: Int64Array
    back_T: Int64Array


def new_logs(rows: int) -> tuple[Int64Array, FloatArray]:
    """What `search_near` writes to."""
    return np.empty((rows, 4), np.int64), np.empty(rows)


@kernel
def search_near(
    slot_expert_P: Int64Array,
    source_NE: FloatArray,
    ranks: int,
    peak: float,
    least: float,
    log_X4: Int64Array,
    gain_X: FloatArray,
) -> int:
    """Changes ``slot_expert_P`` in place, one change at a time, while one keeps ``least`` pairs more near for
    each slot that it changes and the log has room. Writes each to ``log_X4`` (slot, expert, slot, expert; -1
    for no second) and the pairs it gains to ``gain_X``. Returns how many there are."""
    found = Changes(
        np.empty(TRIALS), np.empty(TRIALS, np.int64), np.empty(TRIALS, np.int64), np.empty(TRIALS, np.int64)
    )
    split = new_split(slot_expert_P, source_NE, ranks)
    level_down(split, peak)
    near, n = near_pairs(split), 0
    while n < len(log_X4):
        find_changes(split, peak, least, found)
        gain = try_changes(slot_expert_P, source_NE, ranks, peak, least, near, found, log_X4[n])
        if gain <= 0.0:
            break
        gain_X[n] = gain
        n += 1
        split = new_split(slot_expert_P, source_NE, ranks)
        level_down(split, peak)
        near = near_pairs(split)
    return n


@kernel
def try_changes(
    slot_expert_P: Int64Array,
    source_NE: FloatArray,
    ranks: int,
    peak: float,
    least: float,
    near: float,
    found: Changes,
    log_4: Int64Array,
) -> float:
    """Makes the first of the changes that keeps its promise; what it gains, or 0 where none does."""
    for i in range(TRIALS):
        if found.slot_T[i] < 0:
            break
        slot, back = found.slot_T[i], found.back_T[i]
        before, slots = slot_expert_P[slot], 1 if back < 0 else 2
        slot_expert_P[slot] = found.expert_T[i]
        if back >= 0:
            slot_expert_P[back] = before
        split = new_split(slot_expert_P, source_NE, ranks)
        if level_down(split, peak) <= peak * (1.0 + TOLERANCE):
            gain = near_pairs(split) - near
            if gain >= least * slots:
                log_4[0], log_4[1] = slot, found.expert_T[i]
                log_4[2], log_4[3] = back, before if back >= 0 else -1
                return gain
        slot_expert_P[slot] = before
        if back >= 0:
            slot_expert_P[back] = found.expert_T[i]
    return 0.0


@kernel
def find_changes(split: Split, peak: float, least: float, found: Changes) -> None:
    """Fills ``found`` with the changes that promise most, at least ``least`` for each slot."""
    slots, nodes = len(split.slot_expert_P), len(split.source_NE)
    per_node, size = slots // nodes, slots // len(split.load_G)
    found.gain_T[:] = least
    found.slot_T[:] = -1
    held_NE = count_held(split)
    for slot in range(slots):
        node, expert = slot // per_node, split.slot_expert_P[slot]
        if expert < 0:
            continue
        loss = split.source_NE[node, expert] if held_NE[node, expert] == 1 else 0.0
        load = split.load_G[slot // size] - split.tokens_P[slot]
        for other in range(split.source_NE.shape[1]):
            comes = split.source_NE[node, other]
            if held_NE[node, other] > 0 or comes - loss <= found.gain_T[-1] or held_NE[:, expert].sum() == 1:
                continue
            keep(found, comes - loss - max(load + comes - peak, 0.0), slot, other, -1)
        for to in range((node + 1) * per_node, slots):
            other, there = split.slot_expert_P[to], to // per_node
            if other < 0 or held_NE[node, other] > 0 or held_NE[there, expert] > 0:
                continue
            gain = split.source_NE[node, other] + split.source_NE[there, expert] - loss
            gain -= split.source_NE[there, other] if held_NE[there, other] == 1 else 0.0
            if gain <= 2 * found.gain_T[-1]:
                continue
            moved = split.tokens_P[to] - split.tokens_P[slot]
            gain -= max(split.load_G[slot // size] + moved - peak, 0.0)
            gain -= max(split.load_G[to // size] - moved - peak, 0.0)
            keep(found, gain / 2, slot, other, to)


@kernel
def count_held(split: Split) -> Int64Array:
    """How many slots each node has for each expert, int64 [nodes, experts]."""
    held_NE = np.zeros(split.source_NE.shape, np.int64)
    per_node = len(split.slot_expert_P) // len(split.source_NE)
    for slot in range(len(split.slot_expert_P)):
        if split.slot_expert_P[slot] >= 0:
            held_NE[slot // per_node, split.slot_expert_P[slot]] += 1
    return held_NE


@kernel
def keep(found: Changes, gain: float, slot: int, expert: int, back: int) -> None:
    """Puts a change in its place among the best; behind those that promise as much."""
    place = TRIALS
    while place > 0 and found.gain_T[place - 1] < gain:
        place -= 1
    if place == TRIALS:
        return
    for i in range(TRIALS - 1, place, -1):
        found.gain_T[i], found.slot_T[i] = found.gain_T[i - 1], found.slot_T[i - 1]
        found.expert_T[i], found.back_T[i] = found.expert_T[i - 1], found.back_T[i - 1]
    found.gain_T[place], found.slot_T[place] = gain, slot
    found.expert_T[place], found.back_T[place] = expert, back
