"""Slots that trade places so that the hottest rank gets cooler."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import BoolArray, FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.fresh.pack_kernels import rank_place

MIN_GAIN = 1e-4
"""A trade must take at least this part of what the hottest rank is above the mean."""
ROUNDING = 1e-9
"""And this part of the mean: less may be rounding, which would be traded for ever."""


@kernel
def rank_sums(expert_GS: Int64Array, weight_E: FloatArray) -> FloatArray:
    """The load of each rank, float64 [ranks], where every slot of an expert carries its weight."""
    load_G = np.zeros(len(expert_GS))
    for rank in range(len(expert_GS)):
        for expert in expert_GS[rank]:
            load_G[rank] += weight_E[expert]
    return load_G


@kernel
def trade(expert_GS: Int64Array, weight_E: FloatArray, count_E: Int64Array, most: int) -> None:
    """Trades slots of the hottest rank with those of other ranks, in place, while the hotter of the two gets
    cooler. Only experts of at most ``most`` slots are traded, and none comes twice on a rank. Ends where no
    trade gains ``MIN_GAIN``."""
    load_G = rank_sums(expert_GS, weight_E)
    order_G, mean = np.argsort(load_G, kind="mergesort"), load_G.sum() / len(load_G)
    on_hot_E, best_3 = np.zeros(len(weight_E), np.bool_), np.empty(3, np.int64)
    while True:
        hot = order_G[-1]
        least = max(MIN_GAIN * (load_G[hot] - mean), ROUNDING * mean)
        if not find_trade(expert_GS, weight_E, count_E, most, load_G, order_G, on_hot_E, least, best_3):
            return
        slot, cold, place = best_3[0], int(best_3[1]), best_3[2]
        given, taken = expert_GS[hot, slot], expert_GS[cold, place]
        expert_GS[hot, slot], expert_GS[cold, place] = taken, given
        load_G[hot] += weight_E[taken] - weight_E[given]
        load_G[cold] += weight_E[given] - weight_E[taken]
        settle_order(order_G, load_G, cold)
        settle_order(order_G, load_G, hot)


@kernel
def find_trade(
    expert_GS: Int64Array,
    weight_E: FloatArray,
    count_E: Int64Array,
    most: int,
    load_G: FloatArray,
    order_G: Int64Array,
    on_hot_E: BoolArray,
    least: float,
    best_3: Int64Array,
) -> bool:
    """Writes to ``best_3`` the slot of the hottest rank, the other rank and its slot that gain most (the
    coldest rank, of equals), where more than ``least``; False for none. Colder ranks come first, and can gain
    half of what is between them and the hottest: what gains half of the most there can be is taken."""
    hot, size, gain, found = order_G[-1], expert_GS.shape[1], least, False
    for slot in range(size):
        on_hot_E[expert_GS[hot, slot]] = True
    for rank in order_G:
        gap = load_G[hot] - load_G[rank]
        if gap / 2 <= 2 * gain:
            break
        for slot in range(size):
            expert = expert_GS[hot, slot]
            if count_E[expert] > most or weight_E[expert] <= gain:
                continue
            if rank_place(expert_GS, rank, expert) >= 0:
                continue
            for place in range(size):
                other = expert_GS[rank, place]
                moved = weight_E[expert] - weight_E[other]
                if min(moved, gap - moved) > gain and count_E[other] <= most and not on_hot_E[other]:
                    gain, found = min(moved, gap - moved), True
                    best_3[0], best_3[1], best_3[2] = slot, rank, place
    for slot in range(size):
        on_hot_E[expert_GS[hot, slot]] = False
    return found


@kernel
def settle_order(order_G: Int64Array, load_G: FloatArray, rank: int) -> None:
    """Brings a rank whose load changed to its place in the ascending order."""
    place = 0
    while order_G[place] != rank:
        place += 1
    while place > 0 and load_G[order_G[place - 1]] > load_G[rank]:
        order_G[place] = order_G[place - 1]
        place -= 1
    while place + 1 < len(order_G) and load_G[order_G[place + 1]] < load_G[rank]:
        order_G[place] = order_G[place + 1]
        place += 1
    order_G[place] = rank
