"""Ranks joined by the experts they share, so that shares can carry tokens from any of them to any other.

Ranks and experts of several replicas are the nodes of a graph, their slots its edges. A slot that closes a
cycle joins nothing: it trades places with an expert of nearly the same weight on a rank not joined yet.
With ``ranks - 1`` redundant slots or more all ranks come together, else as many as there are slots for.
"""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.fresh.pack_kernels import count_slots


@kernel
def join_ranks(slot_expert_P: Int64Array, size: int, weight_E: FloatArray, gaps: FloatArray) -> None:
    """Trades slots, in place, between ranks of ``size`` slots that share nothing, nearest weights first:
    those that differ by no more than the first of ``gaps``, then the second, and so on. Each slot of expert
    ``e`` weighs ``weight_E[e]``; none comes twice on a rank."""
    parent_X = np.arange(len(slot_expert_P) // size + len(weight_E))
    count_E = count_slots(slot_expert_P, len(weight_E))
    spare_X = list_spare(slot_expert_P, size, weight_E, count_E, parent_X)
    single_X = list_single(slot_expert_P, weight_E, count_E)
    for gap in gaps:
        for i in range(len(spare_X)):
            if spare_X[i] < 0:
                continue
            slot = spare_X[i]
            k = find_nearest(slot_expert_P, size, weight_E, slot, single_X, parent_X, gap)
            if k >= 0:
                other = single_X[k]
                slot_expert_P[slot], slot_expert_P[other] = slot_expert_P[other], slot_expert_P[slot]
                parent_X[find_root(parent_X, other // size)] = find_root(parent_X, slot // size)
                single_X[k], spare_X[i] = slot, -1


@kernel
def find_root(parent_X: Int64Array, node: int) -> int:
    while parent_X[node] != node:
        parent_X[node] = parent_X[parent_X[node]]
        node = parent_X[node]
    return node


@kernel
def list_spare(
    slot_expert_P: Int64Array, size: int, weight_E: FloatArray, count_E: Int64Array, parent_X: Int64Array
) -> Int64Array:
    """The slots that join nothing which heavier ones have not joined, heaviest first; ``parent_X`` says
    what is joined: ranks, then experts."""
    key_P, spare_X, n = np.zeros(len(slot_expert_P)), np.empty(len(slot_expert_P), np.int64), 0
    for slot in range(len(slot_expert_P)):
        if count_E[slot_expert_P[slot]] > 1:
            key_P[slot] = -weight_E[slot_expert_P[slot]]
    for slot in np.argsort(key_P, kind="mergesort"):
        if key_P[slot] >= 0.0:
            break
        rank = find_root(parent_X, slot // size)
        expert = find_root(parent_X, len(slot_expert_P) // size + slot_expert_P[slot])
        if rank == expert:
            spare_X[n] = slot
            n += 1
        parent_X[expert] = rank
    return spare_X[:n]


@kernel
def list_single(slot_expert_P: Int64Array, weight_E: FloatArray, count_E: Int64Array) -> Int64Array:
    """The slots whose expert has no other, lightest first."""
    slot_E, single_X, n = np.empty(len(weight_E), np.int64), np.empty(len(weight_E), np.int64), 0
    for slot in range(len(slot_expert_P)):
        slot_E[slot_expert_P[slot]] = slot
    for expert in np.argsort(weight_E, kind="mergesort"):
        if count_E[expert] == 1:
            single_X[n] = slot_E[expert]
            n += 1
    return single_X[:n]


@kernel
def find_nearest(
    slot_expert_P: Int64Array,
    size: int,
    weight_E: FloatArray,
    slot: int,
    single_X: Int64Array,
    parent_X: Int64Array,
    gap: float,
) -> int:
    """Where ``single_X`` has the slot of nearest weight, within ``gap``, on a rank not joined to that of
    ``slot``; -1 for none."""
    weight, root = weight_E[slot_expert_P[slot]], find_root(parent_X, slot // size)
    above, end = 0, len(single_X)
    while above < end:
        middle = (above + end) // 2
        if weight_E[slot_expert_P[single_X[middle]]] < weight:
            above = middle + 1
        else:
            end = middle
    below = above - 1
    while True:
        more, less = np.inf, np.inf
        if above < len(single_X):
            more = weight_E[slot_expert_P[single_X[above]]] - weight
        if below >= 0:
            less = weight - weight_E[slot_expert_P[single_X[below]]]
        if min(more, less) > gap:
            return -1
        k = above if more <= less else below
        if find_root(parent_X, single_X[k] // size) != root:
            return k
        if k == above:
            above += 1
        else:
            below -= 1
