"""Replicas counted greedily, packed greedily, and set apart: the steps of the published balancer."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.heap_kernels import heap_up, sink


@kernel
def list_replicas(heat_E: FloatArray, slots: int, most: int) -> Int64Array:
    """The expert of each replica, int64 [slots]: each expert once, in order, then every further one that of
    the most heat per replica (the first of equals) that has fewer than ``most``."""
    experts = len(heat_E)
    listed_P, heap_E = np.zeros(slots, np.int64), np.arange(experts)
    count_E, key_E = np.ones(experts, np.int64), np.empty(experts)
    for expert in range(experts):
        key_E[expert] = -heat_E[expert]
    left = experts if most > 1 else 0
    heap_up(heap_E, left, key_E)
    for i in range(slots):
        if i < experts:
            listed_P[i] = i
        elif left > 0:
            expert = heap_E[0]
            listed_P[i] = expert
            count_E[expert] += 1
            key_E[expert] = -heat_E[expert] / count_E[expert]
            if count_E[expert] == most:
                left -= 1
                heap_E[0] = heap_E[left]
            sink(heap_E, left, 0, key_E)
    return listed_P


@kernel
def pack(weight_N: FloatArray, packs: int) -> Int64Array:
    """The items of each pack, int64 [packs, items per pack]: heaviest first, each into the lightest pack
    that has room (the first of equals)."""
    size = len(weight_N) // packs
    item_GS, heap_G, left = np.empty((packs, size), np.int64), np.arange(packs), packs
    filled_G, weight_G = np.zeros(packs, np.int64), np.zeros(packs)
    for item in sort_down(weight_N):
        lightest = heap_G[0]
        item_GS[lightest, filled_G[lightest]] = item
        filled_G[lightest] += 1
        weight_G[lightest] += weight_N[item]
        if filled_G[lightest] == size:
            left -= 1
            heap_G[0] = heap_G[left]
        sink(heap_G, left, 0, weight_G)
    return item_GS


@kernel
def rank_place(expert_GS: Int64Array, rank: int, expert: int) -> int:
    """The first slot of the rank that holds the expert, or -1."""
    for slot in range(expert_GS.shape[1]):
        if expert_GS[rank, slot] == expert:
            return slot
    return -1


@kernel
def sort_down(weight_N: FloatArray) -> Int64Array:
    """The order from the heaviest to the lightest, the first of equals first."""
    key_N = np.empty(len(weight_N))
    for item in range(len(weight_N)):
        key_N[item] = -weight_N[item]
    return np.argsort(key_N, kind="mergesort")


@kernel
def count_slots(slot_expert_P: Int64Array, experts: int) -> Int64Array:
    """How many slots each expert has, int64 [experts]."""
    count_E = np.zeros(experts, np.int64)
    for expert in slot_expert_P:
        count_E[expert] += 1
    return count_E


@kernel
def weigh_slots(heat_E: FloatArray, count_E: Int64Array) -> FloatArray:
    """What a slot of each expert carries under even shares, float64 [experts]."""
    weight_E = np.empty(len(heat_E))
    for expert in range(len(heat_E)):
        weight_E[expert] = heat_E[expert] / count_E[expert]
    return weight_E


@kernel
def separate(expert_GS: Int64Array, weight_E: FloatArray) -> None:
    """Trades places, in place, until no rank holds an expert twice. A trade is between slots of most equal
    weight; where single trades cannot do it, which takes experts on nearly all ranks, all slots are dealt
    anew. An expert must have no more slots than there are ranks."""
    slot_expert_P, size = expert_GS.ravel(), expert_GS.shape[1]
    order_E, next_P = np.argsort(weight_E, kind="mergesort"), np.full(len(slot_expert_P), -1)
    first_E, place_E = np.full(len(weight_E), -1), np.empty(len(weight_E), np.int64)
    for place in range(len(order_E)):
        place_E[order_E[place]] = place
    for slot in range(len(slot_expert_P) - 1, -1, -1):
        next_P[slot] = first_E[slot_expert_P[slot]]
        first_E[slot_expert_P[slot]] = slot
    for slot in range(len(slot_expert_P)):
        rank, expert = slot // size, slot_expert_P[slot]
        if rank_place(expert_GS, rank, expert) == slot % size:
            continue
        other = nearest_place(expert_GS, rank, expert, weight_E, order_E, place_E[expert], first_E, next_P)
        if other < 0:
            deal(expert_GS, weight_E)
            return
        swap_listed(slot_expert_P, slot, other, first_E, next_P)


@kernel
def deal(expert_GS: Int64Array, weight_E: FloatArray) -> None:
    """Gives the same slots to the ranks in turn, those of one expert behind one another, heaviest first: none
    comes twice on a rank."""
    count_E, place = count_slots(expert_GS.ravel(), len(weight_E)), 0
    for expert in sort_down(weight_E):
        for _ in range(count_E[expert]):
            expert_GS[place % len(expert_GS), place // len(expert_GS)] = expert
            place += 1


@kernel
def nearest_place(
    expert_GS: Int64Array,
    rank: int,
    expert: int,
    weight_E: FloatArray,
    order_E: Int64Array,
    place: int,
    first_E: Int64Array,
    next_P: Int64Array,
) -> int:
    """The slot whose expert, not on ``rank``, weighs most nearly what ``expert`` does, on a rank without
    that; or -1. The lighter of equals comes first, then the slot listed first. ``place`` is where
    ``order_E``, by weight, has the expert."""
    size, weight = expert_GS.shape[1], weight_E[expert]
    below, above = place - 1, place + 1
    while below >= 0 or above < len(order_E):
        less = weight - weight_E[order_E[below]] if below >= 0 else np.inf
        more = weight_E[order_E[above]] - weight if above < len(order_E) else np.inf
        if less <= more:
            other = order_E[below]
            below -= 1
        else:
            other = order_E[above]
            above += 1
        slot = first_E[other] if rank_place(expert_GS, rank, other) < 0 else -1
        while slot >= 0:
            if rank_place(expert_GS, slot // size, expert) < 0:
                return int(slot)
            slot = next_P[slot]
    return -1


@kernel
def swap_listed(
    slot_expert_P: Int64Array, slot: int, other: int, first_E: Int64Array, next_P: Int64Array
) -> None:
    """Two slots trade their experts, and their places in the lists of slots of an expert."""
    for one, two in ((slot, other), (other, slot)):
        expert = slot_expert_P[one]
        if first_E[expert] == one:
            first_E[expert] = two
        else:
            before = first_E[expert]
            while next_P[before] != one:
                before = next_P[before]
            next_P[before] = two
    next_P[slot], next_P[other] = next_P[other], next_P[slot]
    slot_expert_P[slot], slot_expert_P[other] = slot_expert_P[other], slot_expert_P[slot]
