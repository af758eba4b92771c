"""Replicas of an expert set apart, each on a rank of its own."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.fresh.pack_kernels import rank_place


@kernel
def separate(expert_GS: Int64Array, weight_E: FloatArray) -> None:
    """Trades places, in place, until no rank holds an expert twice, as far as single trades can do it.
    A trade is between slots of the most equal weight."""
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
        if other >= 0:
            swap_listed(slot_expert_P, slot, other, first_E, next_P)


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
