"""A layer from nothing whose experts are near to the tokens that pick them: nodes first, then ranks."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.fresh.pack_kernels import pack, separate
from isotherm.planner.fresh.trade_kernels import trade
from isotherm.planner.locality.node_kernels import Homes, away_per_slot, choose_homes
from isotherm.planner.locality.split_kernels import TOLERANCE, level_down, near_pairs, new_split

ROOM = np.array([0.9, 0.7, 0.5, 0.2])
"""What a node's ranks may carry above the mean, on average, as a part of what one of them may: tried in this
order, since what is left to ranks makes them harder to pack the less it is."""
FULL = np.array([0.95, 0.75, 0.55, 0.35])
"""Tried beside them: the most that an only slot carries, in units of the mean load. The others of its rank
come to it."""


@kernel
def place_near_layers(
    slot_expert_LP: Int64Array, source_LNE: FloatArray, ranks: int, peak_L: FloatArray, placed_LP: Int64Array
) -> None:
    """Places each layer anew in ``placed_LP`` where that keeps more pairs near than ``slot_expert_LP`` does,
    with no rank above ``peak_L``; else as it is there."""
    for row in range(len(source_LNE)):
        placed_LP[row] = slot_expert_LP[row]
        mean = source_LNE[row].sum() / ranks
        if mean <= 0.0:
            continue
        source_NE, peak = source_LNE[row] / mean, peak_L[row] / mean
        other_P = place_near(source_NE, ranks, slot_expert_LP.shape[1] // ranks, peak)
        if len(other_P) == 0:
            continue
        split = new_split(slot_expert_LP[row], source_NE, ranks)
        level_down(split, peak)
        other = new_split(other_P, source_NE, ranks)
        level_down(other, peak)
        if near_pairs(other) > near_pairs(split):
            placed_LP[row] = other_P


@kernel
def place_near(source_NE: FloatArray, ranks: int, size: int, peak: float) -> Int64Array:
    """Slots to experts, int64 [slots], of a layer whose ranks are to carry ``peak`` at most; empty where none
    of the ways tried keeps to that."""
    for room, full in zip(ROOM, FULL):
        slot_expert_P = pack_nodes(source_NE, ranks, size, 1.0 + room * (peak - 1.0), full)
        split = new_split(slot_expert_P, source_NE, ranks)
        if level_down(split, peak) <= peak * (1.0 + TOLERANCE):
            return slot_expert_P
    return np.empty(0, np.int64)


@kernel
def pack_nodes(source_NE: FloatArray, ranks: int, size: int, limit: float, full: float) -> Int64Array:
    homes = choose_homes(source_NE, ranks, size, limit, full)
    slot_expert_P = np.empty(ranks * size, np.int64)
    per_node = ranks // len(source_NE) * size
    for node in range(len(source_NE)):
        pack_node(homes, node, size, slot_expert_P[node * per_node : (node + 1) * per_node])
    return slot_expert_P


@kernel
def pack_node(homes: Homes, node: int, size: int, slot_expert_P: Int64Array) -> None:
    """Writes down which slot of the node holds which of its experts."""
    experts, slots, n = homes.slots_NE.shape[1], len(slot_expert_P), 0
    replica_P, weight_P = np.empty(slots, np.int64), np.empty(slots)
    weight_E, count_E = np.zeros(experts), homes.slots_NE[node].copy()
    for expert in range(experts):
        if count_E[expert] > 0:
            own = homes.source_NE[node, expert] / count_E[expert]
            weight_E[expert] = own + away_per_slot(homes, expert)
        for _ in range(count_E[expert]):
            replica_P[n], weight_P[n] = expert, weight_E[expert]
            n += 1
    expert_GS = pack(weight_P, slots // size)
    for rank in range(slots // size):
        for place in range(size):
            expert_GS[rank, place] = replica_P[expert_GS[rank, place]]
    separate(expert_GS, weight_E)
    trade(expert_GS, weight_E, count_E, slots)
    slot_expert_P[:] = expert_GS.ravel()
