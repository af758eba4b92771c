"""The order of a plan's moves: which slots are retired and filled together, and from where."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import BoolArray, FloatArray, Int64Array
from isotherm.jit import kernel

EMPTY, TAKEN = -1, -2
"""The contents of an empty slot, and of one that this round fills."""


class Way(NamedTuple):
    """All layers on their way: what slots hold, what they are to hold, and which of them are live, that is
    neither empty nor retired, counted by expert in ``live_LE``."""

    content_LP: Int64Array
    goal_LP: Int64Array
    heat_LE: FloatArray
    live_LP: BoolArray
    live_LE: Int64Array


@kernel
def order_refills(
    content_LP: Int64Array,
    goal_LP: Int64Array,
    heat_LE: FloatArray,
    ranks_per_node: int,
    slots_per_rank: int,
    limit: int,
) -> Int64Array:
    """Refills, int64 [refills, 5] as in `Rounds`, that turn ``content_LP``, in place, into ``goal_LP``. At
    most ``limit`` slots make a round, taken from the layers in turn. Each layer needs a redundant slot."""
    layers, slots = content_LP.shape
    way = Way(content_LP, goal_LP, heat_LE, content_LP >= 0, np.zeros(heat_LE.shape, np.int64))
    for layer in range(layers):
        for slot in range(slots):
            if way.live_LP[layer, slot]:
                way.live_LE[layer, content_LP[layer, slot]] += 1
    refills_N5, n, begun, number = np.empty((64, 5), np.int64), 0, 0, 0
    open_L, picked_L = np.ones(layers, np.bool_), np.zeros(layers, np.int64)
    while True:
        picked_L[:] = 0
        last = begun - 1
        while last < n < begun + limit:
            last = n
            for layer in range(layers):
                if n == begun + limit or not open_L[layer]:
                    continue
                slot, expert = retire_next(way, layer, picked_L[layer])
                if slot < 0:
                    open_L[layer] = picked_L[layer] > 0
                    continue
                if n == len(refills_N5):
                    refills_N5 = np.concatenate((refills_N5, np.empty_like(refills_N5)))
                refills_N5[n, 0], refills_N5[n, 1] = number, layer
                refills_N5[n, 2], refills_N5[n, 3] = slot, expert
                picked_L[layer] += 1
                n += 1
        if n == begun:
            return refills_N5[:n]
        fill(way, refills_N5[begun:n], slots_per_rank, ranks_per_node)
        begun, number = n, number + 1


@kernel
def retire_next(way: Way, layer: int, picked: int) -> tuple[int, int]:
    """Retires the slot that `pick` names."""
    content_P, live_P, live_E = way.content_LP[layer], way.live_LP[layer], way.live_LE[layer]
    slot, expert = pick(content_P, way.goal_LP[layer], live_P, live_E, way.heat_LE[layer], picked)
    if slot >= 0 and live_P[slot]:
        live_P[slot] = False
        live_E[content_P[slot]] -= 1
    elif slot >= 0:
        content_P[slot] = TAKEN
    return slot, expert


@kernel
def fill(way: Way, refills_N5: Int64Array, slots_per_rank: int, ranks_per_node: int) -> None:
    """Names the sources of one round's refills, and carries them out."""
    for i in range(len(refills_N5)):
        layer, slot, expert = refills_N5[i, 1], refills_N5[i, 2], refills_N5[i, 3]
        refills_N5[i, 4] = nearest_live(
            way.content_LP[layer], way.live_LP[layer], slot, expert, slots_per_rank, ranks_per_node
        )
    for i in range(len(refills_N5)):
        layer, slot, expert = refills_N5[i, 1], refills_N5[i, 2], refills_N5[i, 3]
        way.content_LP[layer, slot], way.live_LP[layer, slot] = expert, True
        way.live_LE[layer, expert] += 1


@kernel
def pick(
    content_P: Int64Array,
    goal_P: Int64Array,
    live_P: BoolArray,
    live_E: Int64Array,
    heat_E: FloatArray,
    picked: int,
) -> tuple[int, int]:
    """The slot to retire next and the expert to fill it with; slot -1 for none in this round.

    A slot that wants an expert which no slot of its own in the goal holds yet comes first. So the number of
    experts that have arrived never falls, and each detour is followed by a rise: every goal is reached. Among
    equals the slot comes first whose loss the others feel least.
    """
    arrived_E = np.zeros(len(heat_E), np.bool_)
    for slot in range(len(goal_P)):
        if goal_P[slot] >= 0 and content_P[slot] == goal_P[slot]:
            arrived_E[goal_P[slot]] = True
    best, blocked, best_arrived, best_felt = -1, -1, True, np.inf
    for slot in range(len(goal_P)):
        wanted = goal_P[slot]
        if wanted < 0 or content_P[slot] == wanted or not (live_P[slot] or content_P[slot] == EMPTY):
            continue
        if not can_retire(content_P, live_E, slot):
            blocked = slot if blocked < 0 else blocked
            continue
        felt = felt_loss(content_P, live_E, heat_E, slot)
        if (
            best < 0
            or arrived_E[wanted] < best_arrived
            or (arrived_E[wanted] == best_arrived and felt < best_felt)
        ):
            best, best_arrived, best_felt = slot, arrived_E[wanted], felt
    if best >= 0:
        return best, goal_P[best]
    if blocked < 0 or picked > 0:
        return -1, -1
    # Each pending slot holds the last replica of what another of them wants: one goes by a redundant slot.
    for slot in range(len(goal_P)):
        if can_retire(content_P, live_E, slot):
            felt = felt_loss(content_P, live_E, heat_E, slot)
            if best < 0 or felt < best_felt:
                best, best_felt = slot, felt
    return best, content_P[blocked]


@kernel
def can_retire(content_P: Int64Array, live_E: Int64Array, slot: int) -> bool:
    return bool(content_P[slot] == EMPTY or (content_P[slot] >= 0 and live_E[content_P[slot]] > 1))


@kernel
def felt_loss(content_P: Int64Array, live_E: Int64Array, heat_E: FloatArray, slot: int) -> float:
    """What each other replica of the slot's expert would get more."""
    expert = content_P[slot]
    if expert < 0:
        return 0.0
    return float(heat_E[expert] / (live_E[expert] * (live_E[expert] - 1)))


@kernel
def nearest_live(
    content_P: Int64Array, live_P: BoolArray, slot: int, expert: int, size: int, ranks_per_node: int
) -> int:
    """The live slot with the expert on the same rank, else on the same node, else anywhere: the lowest."""
    rank, best, best_distance = slot // size, -1, 3
    for source in range(len(content_P)):
        if not live_P[source] or content_P[source] != expert:
            continue
        other, distance = source // size, 2
        if other == rank:
            distance = 0
        elif other // ranks_per_node == rank // ranks_per_node:
            distance = 1
        if distance < best_distance:
            best, best_distance = source, distance
    return best


@kernel
def even_peaks(slot_expert_LP: Int64Array, heat_LE: FloatArray, ranks: int) -> FloatArray:
    """The load of the hottest rank with even shares, float64 [layers]."""
    layers, slots = slot_expert_LP.shape
    peak_L, count_E, size = np.zeros(layers), np.empty(heat_LE.shape[1], np.int64), slots // ranks
    for layer in range(layers):
        count_E[:] = 0
        for slot in range(slots):
            if slot_expert_LP[layer, slot] >= 0:
                count_E[slot_expert_LP[layer, slot]] += 1
        for first in range(0, slots, size):
            load = 0.0
            for slot in range(first, first + size):
                expert = slot_expert_LP[layer, slot]
                if expert >= 0:
                    load += heat_LE[layer, expert] / count_E[expert]
            peak_L[layer] = max(peak_L[layer], load)
    return peak_L
