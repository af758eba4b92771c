"""Replicas and places decided together, group by group of experts, for heat that varies over slices."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.fresh.pack_kernels import separate

SPREAD = 1.0
"""Standard deviations over the slices that count on top of a rank's mean load."""
GROUP = 2
"""Experts that are decided together."""
WIDTH = 2
"""A group is tried with so many replicas more, and so many fewer, than greed would give it."""


@kernel
def place_jointly(
    heat_SE: FloatArray, heat_E: FloatArray, order_E: Int64Array, size: int, ranks: int
) -> Int64Array:
    """One layer from nothing, int64 [ranks, slots]: the groups of experts from hot to cold (``order_E``),
    each with the number of replicas after which the layer, completed by greed, has the lowest highest risk.
    ``heat_E`` is the sum of the slices."""
    experts = len(order_E)
    count_E, tried_E = np.ones(experts, np.int64), np.ones(experts, np.int64)
    best_GS, tried_GS = np.zeros((ranks, size), np.int64), np.zeros((ranks, size), np.int64)
    best_peak, left = np.inf, ranks * size - experts
    most = ranks if size <= experts else ranks * size
    for first in range(0, experts, GROUP):
        if left == 0 and best_peak < np.inf:
            break
        last = min(first + GROUP, experts)
        tried_E[:] = count_E
        allot(heat_E, order_E, first, experts, tried_E, left, most)
        greedy = 0
        for i in range(first, last):
            greedy += tried_E[order_E[i]] - 1
        best_extra = greedy
        fewest = max(0, greedy - WIDTH, left - (experts - last) * (most - 1))
        for extra in range(fewest, min(left, greedy + WIDTH, (last - first) * (most - 1)) + 1):
            tried_E[:] = count_E
            allot(heat_E, order_E, first, last, tried_E, extra, most)
            allot(heat_E, order_E, last, experts, tried_E, left - extra, most)
            peak = place(heat_SE, heat_E, order_E, tried_E, tried_GS)
            if peak < best_peak:
                best_extra, best_peak = extra, peak
                best_GS[:] = tried_GS
        allot(heat_E, order_E, first, last, count_E, best_extra, most)
        left -= best_extra
    if size <= experts:
        part(best_GS, heat_E)
    return best_GS


@kernel
def part(expert_GS: Int64Array, heat_E: FloatArray) -> None:
    """Sees to it that no rank holds an expert twice, by trades, or, where those do not do it, by dealing the
    replicas to the ranks in turn. No expert has more of them than there are ranks."""
    ranks, size = expert_GS.shape
    count_E = np.zeros(len(heat_E), np.int64)
    for rank in range(ranks):
        for slot in range(size):
            count_E[expert_GS[rank, slot]] += 1
    separate(expert_GS, heat_E / count_E)
    for rank in range(ranks):
        for slot in range(size):
            for other in range(slot):
                if expert_GS[rank, slot] == expert_GS[rank, other]:
                    deal(expert_GS, count_E)
                    return


@kernel
def deal(expert_GS: Int64Array, count_E: Int64Array) -> None:
    ranks, n = len(expert_GS), 0
    for expert in range(len(count_E)):
        for _ in range(count_E[expert]):
            expert_GS[n % ranks, n // ranks] = expert
            n += 1


@kernel
def allot(
    heat_E: FloatArray, order_E: Int64Array, first: int, last: int, count_E: Int64Array, extra: int, most: int
) -> None:
    """Gives ``extra`` more replicas to the experts of ``order_E[first:last]``, each to that of the most heat
    per replica (the first of equals) that has fewer than ``most``."""
    for _ in range(extra):
        best = -1
        for i in range(first, last):
            expert = order_E[i]
            if count_E[expert] >= most:
                continue
            if best < 0 or heat_E[expert] * count_E[best] > heat_E[best] * count_E[expert]:
                best = expert
        count_E[best] += 1


@kernel
def place(
    heat_SE: FloatArray, heat_E: FloatArray, order_E: Int64Array, count_E: Int64Array, expert_GS: Int64Array
) -> float:
    """Puts all replicas on ranks, heaviest first, each where the rank then counts least of those with room
    that do not hold its like, where there are such. Returns the highest risk."""
    ranks, size = expert_GS.shape
    load_GT, filled_G, peak = np.zeros((ranks, len(heat_SE))), np.zeros(ranks, np.int64), 0.0
    for expert in by_weight(heat_E, order_E, count_E):
        for _ in range(count_E[expert]):
            best, best_risk, best_apart = -1, 0.0, False
            for rank in range(ranks):
                if filled_G[rank] == size:
                    continue
                apart = True
                for slot in range(filled_G[rank]):
                    apart = apart and expert_GS[rank, slot] != expert
                if apart < best_apart:
                    continue
                counted = risk_with(load_GT, rank, heat_SE, expert, count_E[expert])
                if best < 0 or apart > best_apart or counted < best_risk:
                    best, best_risk, best_apart = rank, counted, apart
            expert_GS[best, filled_G[best]] = expert
            filled_G[best] += 1
            peak = max(peak, best_risk)
            for slice_number in range(len(heat_SE)):
                load_GT[best, slice_number] += heat_SE[slice_number, expert] / count_E[expert]
    return peak


@kernel
def by_weight(heat_E: FloatArray, order_E: Int64Array, count_E: Int64Array) -> Int64Array:
    """The experts, those with most heat per replica first, equals as in ``order_E`` (an insertion sort, since
    that is nearly their order)."""
    sorted_E = order_E.copy()
    for i in range(1, len(sorted_E)):
        expert, j = sorted_E[i], i
        weight = heat_E[expert] / count_E[expert]
        while j > 0 and heat_E[sorted_E[j - 1]] / count_E[sorted_E[j - 1]] < weight:
            sorted_E[j] = sorted_E[j - 1]
            j -= 1
        sorted_E[j] = expert
    return sorted_E


@kernel
def risk_with(load_GT: FloatArray, rank: int, heat_SE: FloatArray, expert: int, count: int) -> float:
    """What the rank would count as with one of ``count`` replicas more: the mean of its load over the slices
    and `SPREAD` deviations."""
    slices, mean, square = len(heat_SE), 0.0, 0.0
    for i in range(slices):
        mean += load_GT[rank, i] + heat_SE[i, expert] / count
    mean /= slices
    if slices > 1:
        for i in range(slices):
            away = load_GT[rank, i] + heat_SE[i, expert] / count - mean
            square += away * away
    return float(mean + SPREAD * np.sqrt(square / slices))
