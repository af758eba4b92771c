"""A placement from nothing by trees: ranks that balanced shares can bring to one level by construction.

Two slots make a rank an edge between two experts. With more experts than ranks, ``experts - ranks`` trees
are the fewest parts that hold all experts; a tree of ``n`` experts has ``n - 1`` ranks, which balanced shares
can bring to one level. So the heat of each group is to be that of its ranks: with the slack of an expert
``1 - heat``, in units of the mean load of a rank, that of each group is to be 1.

With as many ranks as experts one tree holds all, and what ranks it does not need are filled by the hottest
experts. More slots a rank are filled with the coldest experts first, which leaves two.
"""

from __future__ import annotations

import numpy as np

from isotherm.arrays import BoolArray, FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.fresh.pack_kernels import pack, sort_down

FULL = -np.inf
"""The room of a rank that is filled."""


@kernel
def plant(heat_E: FloatArray, ranks: int) -> Int64Array:
    """Slots to experts, int64 [2 x ranks], for more experts than ranks and heat of mean load 1."""
    group_E = group_experts(heat_E, len(heat_E) - ranks)
    slot_expert_P, rank = np.empty(2 * ranks, np.int64), 0
    left_E, waits_E, members = heat_E.copy(), np.ones(len(heat_E), np.bool_), np.empty_like(group_E)
    for group in range(len(heat_E) - ranks):
        size = 0
        for expert in range(len(heat_E)):
            if group_E[expert] == group:
                members[size] = expert
                size += 1
        for _ in range(size - 1):
            hot, cold = hottest_and_coldest(members[:size], left_E, waits_E)
            slot_expert_P[2 * rank], slot_expert_P[2 * rank + 1] = hot, cold
            rank += 1
            left_E[hot] = max(0.0, left_E[hot] - max(0.0, 1.0 - left_E[cold]))
            waits_E[cold] = False
    return slot_expert_P


@kernel
def plant_one(heat_E: FloatArray, ranks: int, size: int) -> Int64Array:
    """Slots to experts, int64 [size x ranks], of heat of mean load 1: one tree of all but the coldest
    ``ranks x (size - 2)`` experts, which must leave from 2 to as many as there are ranks.

    The coldest expert left and what the hottest adds fill a rank, and the hottest has enough: ``n`` experts
    have the heat of ``n - 1`` ranks.
    """
    fixed = ranks * (size - 2)
    order_E, slot_expert_P = sort_down(heat_E), np.empty(ranks * size, np.int64)
    members, cold_E = order_E[: len(heat_E) - fixed], order_E[len(heat_E) - fixed :]
    room_G, cold_N = np.ones(ranks), np.empty(fixed)
    for i in range(fixed):
        cold_N[i] = heat_E[cold_E[i]]
    if fixed > 0:
        item_GS = pack(cold_N, ranks)
        for rank in range(ranks):
            for i in range(size - 2):
                slot_expert_P[rank * size + 2 + i] = cold_E[item_GS[rank, i]]
                room_G[rank] -= cold_N[item_GS[rank, i]]
    left_E, waits_E = heat_E.copy(), np.ones(len(heat_E), np.bool_)
    for unneeded in range(ranks - (len(members) - 1), 1 - len(members), -1):
        hot, cold = hottest_and_coldest(members, left_E, waits_E)
        rank = tightest(room_G, 0.0 if unneeded > 0 else left_E[cold])
        slot_expert_P[rank * size], slot_expert_P[rank * size + 1] = hot, cold
        given = room_G[rank] if unneeded > 0 else max(0.0, room_G[rank] - left_E[cold])
        left_E[hot] = max(0.0, left_E[hot] - given)
        waits_E[cold] = unneeded > 0
        room_G[rank] = FULL
    return slot_expert_P


@kernel
def tightest(room_G: FloatArray, heat: float) -> int:
    """The rank with the least room of those that have enough, else the one with most."""
    best, most = -1, 0
    for rank in range(len(room_G)):
        if room_G[rank] >= heat and (best < 0 or room_G[rank] < room_G[best]):
            best = rank
        if room_G[rank] > room_G[most]:
            most = rank
    return best if best >= 0 else most


@kernel
def hottest_and_coldest(members: Int64Array, left_E: FloatArray, waits_E: BoolArray) -> tuple[int, int]:
    """Of the members that wait, at least two, the one with most heat left and the one with least."""
    hot, cold = -1, -1
    for expert in members:
        if waits_E[expert] and (hot < 0 or left_E[expert] > left_E[hot]):
            hot = expert
    for expert in members:
        if waits_E[expert] and expert != hot and (cold < 0 or left_E[expert] < left_E[cold]):
            cold = expert
    return hot, cold


@kernel
def group_experts(heat_E: FloatArray, groups: int) -> Int64Array:
    """The group of each expert: experts hotter than a rank each begin one while there are any, and the
    coldest next joins the group with the least slack. Then experts trade groups while that helps."""
    slack_X, size_X = np.zeros(groups), np.zeros(groups, np.int64)
    group_E, order_E = np.empty(len(heat_E), np.int64), np.argsort(heat_E, kind="mergesort")
    hot = 0
    while hot < len(heat_E) and heat_E[order_E[len(heat_E) - 1 - hot]] > 1.0:
        expert, group = order_E[len(heat_E) - 1 - hot], hot % groups
        group_E[expert] = group
        slack_X[group] += 1.0 - heat_E[expert]
        size_X[group] += 1
        hot += 1
    for i in range(len(heat_E) - hot):
        expert, best, left = order_E[i], -1, len(heat_E) - hot - i
        lacking = 0
        for group in range(groups):
            lacking += max(0, 2 - size_X[group])
        for group in range(groups):
            if lacking >= left and size_X[group] >= 2:
                continue
            if best < 0 or slack_X[group] < slack_X[best]:
                best = group
        group_E[expert] = best
        slack_X[best] += 1.0 - heat_E[expert]
        size_X[best] += 1
    trade_experts(heat_E, group_E, slack_X, size_X)
    return group_E


@kernel
def level_of(slack: float, size: int) -> float:
    """What each rank of a group carries."""
    return (size - slack) / (size - 1)


@kernel
def trade_experts(heat_E: FloatArray, group_E: Int64Array, slack_X: FloatArray, size_X: Int64Array) -> None:
    """Trades an expert of the group with the highest level for one of another group, always the trade after
    which the higher of the two is lowest (the first of equals), until none gains."""
    for _ in range(len(heat_E)):
        worst = 0
        for group in range(len(slack_X)):
            if level_of(slack_X[group], size_X[group]) > level_of(slack_X[worst], size_X[worst]):
                worst = group
        best_level, best, best_other = level_of(slack_X[worst], size_X[worst]) - 1e-4, -1, -1
        for expert in range(len(heat_E)):
            if group_E[expert] != worst:
                continue
            for other in range(len(heat_E)):
                group, moved = group_E[other], heat_E[expert] - heat_E[other]
                if group == worst or moved <= 0.0:
                    continue
                level = max(
                    level_of(slack_X[worst] + moved, size_X[worst]),
                    level_of(slack_X[group] - moved, size_X[group]),
                )
                if level < best_level:
                    best_level, best, best_other = level, expert, other
        if best < 0:
            return
        group, moved = group_E[best_other], heat_E[best] - heat_E[best_other]
        slack_X[worst] += moved
        slack_X[group] -= moved
        group_E[best], group_E[best_other] = group, worst
