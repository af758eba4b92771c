"""Replicas counted greedily, and packed greedily: the two steps of the published balancer."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel


@kernel
def list_replicas(heat_E: FloatArray, slots: int, most: int) -> Int64Array:
    """The expert of each replica, int64 [slots]: each expert once, in order, then every further one that of
    the most heat per replica (the first of equals) that has fewer than ``most``."""
    experts = len(heat_E)
    listed_P = np.empty(slots, np.int64)
    count_E = np.ones(experts, np.int64)
    for i in range(slots):
        if i < experts:
            listed_P[i] = i
            continue
        best = -1
        for expert in range(experts):
            if count_E[expert] >= most:
                continue
            if best < 0 or heat_E[expert] * count_E[best] > heat_E[best] * count_E[expert]:
                best = expert
        listed_P[i] = max(best, 0)
        count_E[listed_P[i]] += 1
    return listed_P


@kernel
def pack(weight_N: FloatArray, packs: int) -> Int64Array:
    """The items of each pack, int64 [packs, items per pack]: heaviest first, each into the lightest pack
    that has room (the first of equals)."""
    size = len(weight_N) // packs
    item_GS = np.empty((packs, size), np.int64)
    filled_G = np.zeros(packs, np.int64)
    weight_G = np.zeros(packs)
    for item in np.argsort(-weight_N, kind="mergesort"):
        best = -1
        for pack_number in range(packs):
            if filled_G[pack_number] < size and (best < 0 or weight_G[pack_number] < weight_G[best]):
                best = pack_number
        item_GS[best, filled_G[best]] = item
        filled_G[best] += 1
        weight_G[best] += weight_N[item]
    return item_GS


@kernel
def separate(expert_GS: Int64Array, weight_E: FloatArray) -> None:
    """Trades places, in place, until no rank holds an expert twice, as far as single trades can do it.
    A trade is between slots of the most equal weight."""
    ranks, size = expert_GS.shape
    holds_GE = np.zeros((ranks, len(weight_E)), np.int64)
    for rank in range(ranks):
        for expert in expert_GS[rank]:
            holds_GE[rank, expert] += 1
    for rank in range(ranks):
        for slot in range(size):
            expert = expert_GS[rank, slot]
            if holds_GE[rank, expert] < 2:
                continue
            best_rank, best_slot, best_gap = -1, -1, np.inf
            for other in range(ranks):
                if holds_GE[other, expert] > 0:
                    continue
                for place in range(size):
                    traded = expert_GS[other, place]
                    gap = abs(weight_E[traded] - weight_E[expert])
                    if holds_GE[rank, traded] == 0 and gap < best_gap:
                        best_rank, best_slot, best_gap = other, place, gap
            if best_rank < 0:
                continue
            traded = expert_GS[best_rank, best_slot]
            expert_GS[rank, slot], expert_GS[best_rank, best_slot] = traded, expert
            holds_GE[rank, expert] -= 1
            holds_GE[rank, traded] += 1
            holds_GE[best_rank, traded] -= 1
            holds_GE[best_rank, expert] += 1


@kernel
def trade(expert_GS: Int64Array, weight_E: FloatArray, target: float) -> None:
    """Trades slots of the hottest rank with those of other ranks, in place, while the hotter of the two gets
    cooler: always the trade after which it is coolest (the first of equals). Ends at ``target``, or where
    no trade gains a ten-thousandth of what the rank is above the mean. Puts no expert twice on a rank."""
    ranks, size = expert_GS.shape
    holds_GE = np.zeros((ranks, len(weight_E)), np.bool_)
    load_G = np.zeros(ranks)
    for rank in range(ranks):
        for expert in expert_GS[rank]:
            holds_GE[rank, expert] = True
            load_G[rank] += weight_E[expert]
    mean = load_G.mean()
    while True:
        hot = np.argmax(load_G)
        if load_G[hot] <= target:
            return
        best_gain, best_rank, best_slot, best_place = 1e-4 * (load_G[hot] - mean), -1, -1, -1
        for rank in range(ranks):
            gap = load_G[hot] - load_G[rank]
            if gap / 2 <= best_gain:
                continue
            for slot in range(size):
                expert = expert_GS[hot, slot]
                if holds_GE[rank, expert]:
                    continue
                for place in range(size):
                    moved = weight_E[expert] - weight_E[expert_GS[rank, place]]
                    gain = min(moved, gap - moved)
                    if gain > best_gain and not holds_GE[hot, expert_GS[rank, place]]:
                        best_gain, best_rank, best_slot, best_place = gain, rank, slot, place
        if best_rank < 0:
            return
        given, taken = expert_GS[hot, best_slot], expert_GS[best_rank, best_place]
        expert_GS[hot, best_slot], expert_GS[best_rank, best_place] = taken, given
        holds_GE[hot, given], holds_GE[hot, taken] = False, True
        holds_GE[best_rank, taken], holds_GE[best_rank, given] = False, True
        load_G[hot] += weight_E[taken] - weight_E[given]
        load_G[best_rank] += weight_E[given] - weight_E[taken]
