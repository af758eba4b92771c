"""Two slots a rank and even shares: how many replicas each expert gets.

For given numbers of replicas the best is to pair the heaviest with the lightest, the second heaviest with the
second lightest, and so on. What remains is a search over the numbers. For a peak ``t`` each expert needs
``ceil(heat / t)`` replicas; the slots left go, one by one, to the expert that takes most off the pairs above
``t``, and ``t`` is brought down by bisection.
"""

from __future__ import annotations

import numpy as np

from isotherm.arrays import BoolArray, FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.fresh.pack_kernels import count_slots, list_replicas, sort_down, weigh_slots

HALVINGS = 8
"""So often the range of peaks, from the bound to that of replicas counted greedily, is halved."""
CHOSEN = 64
"""At most so many slots are given by trial; where more are left, the first go greedily."""
TRIED = 16


@kernel
def pair(heat_E: FloatArray, ranks: int, bound: float) -> Int64Array:
    """Slots to experts, int64 [2 x ranks], of a low peak under even shares, for heat of mean load 1.
    No peak is below ``bound``. An expert can come twice on a rank."""
    best_E = count_slots(list_replicas(heat_E, 2 * ranks, ranks), len(heat_E))
    best = pair_peak(heat_E, best_E, ranks)
    low, high = bound, best
    for _ in range(HALVINGS):
        level = (low + high) / 2
        count_E = count_for(heat_E, ranks, level)
        if count_E.sum() == 2 * ranks:
            peak = pair_peak(heat_E, count_E, ranks)
            if peak < best:
                best, best_E = peak, count_E
        if best <= level:
            high = level
        else:
            low = level
    listed_P = list_by_weight(heat_E, best_E)
    slot_expert_P = np.empty_like(listed_P)
    for rank in range(ranks):
        slot_expert_P[2 * rank], slot_expert_P[2 * rank + 1] = listed_P[rank], listed_P[-1 - rank]
    return slot_expert_P


@kernel
def list_by_weight(heat_E: FloatArray, count_E: Int64Array) -> Int64Array:
    """The experts of all replicas, heaviest first."""
    listed_P, n = np.empty(count_E.sum(), np.int64), 0
    for expert in sort_down(weigh_slots(heat_E, count_E)):
        for _ in range(count_E[expert]):
            listed_P[n] = expert
            n += 1
    return listed_P


@kernel
def pair_peak(heat_E: FloatArray, count_E: Int64Array, ranks: int) -> float:
    listed_P, weight_E, peak = list_by_weight(heat_E, count_E), weigh_slots(heat_E, count_E), 0.0
    for rank in range(ranks):
        peak = max(peak, weight_E[listed_P[rank]] + weight_E[listed_P[-1 - rank]])
    return peak


@kernel
def count_for(heat_E: FloatArray, ranks: int, level: float) -> Int64Array:
    """How many replicas each expert gets for a peak of ``level``; of another sum than there are slots where
    that is found to be out of reach."""
    slots, count_E = 2 * ranks, np.empty(len(heat_E), np.int64)
    for expert in range(len(heat_E)):
        count_E[expert] = min(ranks, max(1, int(np.ceil(heat_E[expert] / level - 1e-9))))
    if count_E.sum() < slots - CHOSEN:
        count_E = count_slots(list_replicas(heat_E, slots - CHOSEN, ranks), len(heat_E))
    weight_E, over_E = weigh_slots(heat_E, count_E), np.empty(len(heat_E), np.bool_)
    order_E = sort_down(weight_E)
    for empty in range(slots - count_E.sum(), 0, -1):
        excess = add_excess(order_E, weight_E, count_E, ranks, empty, level, over_E)
        place = best_to_give(order_E, weight_E, count_E, ranks, empty, level, over_E, excess > 0.0)
        if place < 0:
            break
        give(order_E, weight_E, count_E, place)
    return count_E


@kernel
def best_to_give(
    order_E: Int64Array,
    weight_E: FloatArray,
    count_E: Int64Array,
    ranks: int,
    empty: int,
    level: float,
    over_E: BoolArray,
    only_over: bool,
) -> int:
    """The place in ``order_E`` of the expert whose next replica takes most off the pairs above ``level``, or
    -1. Where none is above, the first expert that leaves it so."""
    best, best_excess, seen = -1, np.inf, 0
    stride = max(1, over_E.sum() // TRIED) if only_over else 1
    trial_E, unused_E = np.empty_like(order_E), np.empty(0, np.bool_)
    for place in range(len(order_E)):
        expert = order_E[place]
        if count_E[expert] == ranks or (only_over and not over_E[expert]):
            continue
        seen += 1
        if seen % stride:
            continue
        trial_E[:] = order_E
        weight = weight_E[expert]
        give(trial_E, weight_E, count_E, place)
        excess = add_excess(trial_E, weight_E, count_E, ranks, empty - 1, level, unused_E)
        weight_E[expert] = weight
        count_E[expert] -= 1
        if excess < best_excess:
            best, best_excess = place, excess
        if excess == 0.0:
            break
    return best


@kernel
def give(order_E: Int64Array, weight_E: FloatArray, count_E: Int64Array, place: int) -> None:
    """One more replica for the expert at ``place`` of the order, which it keeps."""
    expert = order_E[place]
    weight_E[expert] *= count_E[expert] / (count_E[expert] + 1)
    count_E[expert] += 1
    while place + 1 < len(order_E) and weight_E[order_E[place + 1]] > weight_E[expert]:
        order_E[place] = order_E[place + 1]
        place += 1
    order_E[place] = expert


@kernel
def add_excess(
    order_E: Int64Array,
    weight_E: FloatArray,
    count_E: Int64Array,
    ranks: int,
    empty: int,
    level: float,
    over_E: BoolArray,
) -> float:
    """How far the pairs are above ``level``, added up, with ``empty`` slots of no weight. Marks the experts
    in those pairs in ``over_E``, if it has room."""
    over_E[:] = False
    heavy, heavy_left, light, light_left = 0, count_E[order_E[0]], len(order_E), empty
    excess, left = 0.0, ranks
    while left > 0:
        if heavy_left == 0:
            heavy += 1
            heavy_left = count_E[order_E[heavy]]
        if light_left == 0:
            light -= 1
            light_left = count_E[order_E[light]]
        pairs = left if heavy == light else min(heavy_left, light_left, left)
        above = weight_E[order_E[heavy]] - level
        if light < len(order_E):
            above += weight_E[order_E[light]]
        if above > 0.0:
            excess += pairs * above
            if len(over_E):
                over_E[order_E[heavy]] = True
                over_E[order_E[min(light, len(order_E) - 1)]] = True
        heavy_left, light_left, left = heavy_left - pairs, light_left - pairs, left - pairs
    return excess
