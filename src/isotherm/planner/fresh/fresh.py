"""A layer from nothing: where each expert and each replica goes when moves are free."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.bounds import lowest_peak
from isotherm.planner.fresh.forest_kernels import plant, plant_one
from isotherm.planner.fresh.join_kernels import join_ranks
from isotherm.planner.fresh.pack_kernels import count_slots, list_replicas, pack, separate, weigh_slots
from isotherm.planner.fresh.pair_kernels import pair
from isotherm.planner.fresh.trade_kernels import rank_sums, trade
from isotherm.planner.layers.load_kernels import make_layer

LEVELS = np.array([1.0, 1.03, 1.06])
"""Loads, in units of the bound, for which trees of ranks with two slots are planted; the best is taken."""
GAPS = np.array([2.5e-4, 1e-3, 4e-3, 1.6e-2, 6.4e-2, 0.25])
"""How different two slots may be that trade places to join ranks, in units of the mean load."""
JOIN_COST = 5e-4
"""What the peak may rise, in units of the mean, for joining all ranks under even shares. Balanced shares
level out what that costs."""
NEAR_BOUND = 1e-3
"""A layer within this part of its bound is good enough: no other way is tried."""
LEVELLED = 0.005
"""Joined ranks this near to the bound under even shares are taken to be at it under balanced ones."""


@kernel
def place_layers(
    heat_LE: FloatArray, ranks: int, size: int, balanced: bool, slot_expert_LP: Int64Array
) -> None:
    """Writes the expert of each slot of each layer, int64 [layers, ranks x size].

    Replicas are listed greedily and packed, slots traded, and ranks joined through the experts they share, so
    that balanced shares can bring them to one level, and keep them there when heat drifts. Where that is not
    near the bound, replicas are paired (two slots a rank) or, for balanced shares, planted in trees, and the
    best is taken.
    """
    for row in range(len(heat_LE)):
        slot_expert_LP[row] = place_layer(heat_LE[row], ranks, size, balanced)


@kernel
def place_layer(heat_E: FloatArray, ranks: int, size: int, balanced: bool) -> Int64Array:
    mean = heat_E.sum() / ranks
    unit_E = in_units(heat_E, mean if mean > 0.0 else 1.0)
    best_P = arrange(pack_replicas(unit_E, ranks, size), unit_E, ranks, balanced)
    if mean <= 0.0 or (size != 2 and not balanced):
        return best_P
    bound, peak = lowest_peak(unit_E, ranks, size), peak_under(best_P, unit_E, ranks, False)
    if balanced and peak > bound * (1.0 + LEVELLED):
        peak = peak_under(best_P, unit_E, ranks, True)
    elif balanced:
        return best_P
    for attempt in range(len(LEVELS) + 1):
        if peak <= bound * (1.0 + NEAR_BOUND):
            break
        other_P = place_otherwise(unit_E, ranks, size, balanced, bound, attempt)
        if len(other_P) > 0:
            other = peak_under(other_P, unit_E, ranks, balanced)
            if other < peak:
                best_P, peak = other_P, other
    return best_P


@kernel
def place_otherwise(
    heat_E: FloatArray, ranks: int, size: int, balanced: bool, bound: float, attempt: int
) -> Int64Array:
    """Slots to experts, int64 [slots], in another way for each ``attempt``; empty where there is none."""
    trees = len(heat_E) - ranks * (size - 2)
    if balanced and 2 <= trees <= ranks and attempt == 0:
        return plant_one(heat_E, ranks, size)
    if size == 2 and attempt == 0:
        return arrange(pair(heat_E, ranks, bound), heat_E, ranks, balanced)
    if size == 2 and balanced and trees > ranks:
        return plant(in_units(heat_E, LEVELS[attempt - 1] * bound), ranks)
    return np.empty(0, np.int64)


@kernel
def in_units(heat_E: FloatArray, unit: float) -> FloatArray:
    unit_E = np.empty(len(heat_E))
    for expert in range(len(heat_E)):
        unit_E[expert] = heat_E[expert] / unit
    return unit_E


@kernel
def pack_replicas(heat_E: FloatArray, ranks: int, size: int) -> Int64Array:
    """Slots to experts, int64 [slots]: replicas listed and packed greedily."""
    replica_P, weight_P = list_replicas(heat_E, ranks * size, ranks), np.empty(ranks * size)
    weight_E = weigh_slots(heat_E, count_slots(replica_P, len(heat_E)))
    for i in range(ranks * size):
        weight_P[i] = weight_E[replica_P[i]]
    slot_expert_P = pack(weight_P, ranks).ravel()
    for slot in range(ranks * size):
        slot_expert_P[slot] = replica_P[slot_expert_P[slot]]
    return slot_expert_P


@kernel
def arrange(slot_expert_P: Int64Array, heat_E: FloatArray, ranks: int, balanced: bool) -> Int64Array:
    """The slots after all trades that keep how many each expert has, int64 [slots]."""
    expert_GS = slot_expert_P.reshape((ranks, len(slot_expert_P) // ranks))
    count_E = count_slots(slot_expert_P, len(heat_E))
    weight_E = weigh_slots(heat_E, count_E)
    if expert_GS.shape[1] <= len(heat_E):
        separate(expert_GS, weight_E)
    trade(expert_GS, weight_E, count_E, ranks)
    joined_GS = join(expert_GS, weight_E, count_E, GAPS)
    if not balanced:
        most = rank_sums(expert_GS, weight_E).max() + JOIN_COST
        if rank_sums(joined_GS, weight_E).max() > most:
            joined_GS = join(expert_GS, weight_E, count_E, GAPS[:2])
    return joined_GS.ravel()


@kernel
def join(expert_GS: Int64Array, weight_E: FloatArray, count_E: Int64Array, gaps: FloatArray) -> Int64Array:
    """Ranks joined, int64 [ranks, slots], and experts of one slot traded once more, which parts none."""
    joined_GS = expert_GS.copy()
    join_ranks(joined_GS.ravel(), expert_GS.shape[1], weight_E, gaps)
    trade(joined_GS, weight_E, count_E, 1)
    return joined_GS


@kernel
def peak_under(slot_expert_P: Int64Array, heat_E: FloatArray, ranks: int, balanced: bool) -> float:
    """The highest load, for heat of mean load 1."""
    peak: float = make_layer(slot_expert_P, heat_E, ranks, balanced).rank_G["load"].max()
    return peak
