"""Changes of two slots at once: an expert of the cool side makes room for one of the hot side."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.layers.layer import Layer, begin, holds, set_expert, undo
from isotherm.planner.search.cut_kernels import COOL, HOT, Cut, find_sides, keep_best, list_experts, stranded
from isotherm.planner.search.flow_kernels import TINY, replace, surplus

TRIALS = 64
"""So many pairs, of those that promise most, are tried out."""


@kernel
def best_pair(layer: Layer, cut: Cut, cap: float, change_4: Int64Array) -> float:
    """Writes to ``change_4`` two slots and their new experts, which together take most off the surplus, and
    returns how much; 0 where no pair does. The first slot, redundant or on the hot side, gets the expert of
    the second, on the cool side, which gets one of the hot side: a move into a place that is made free, or a
    swap."""
    find_sides(layer, cap)
    pair_K, score_K = np.empty(TRIALS, np.int64), np.empty(TRIALS)
    n = list_pairs(layer, cut, list_experts(layer, cut, False), pair_K, score_K)
    now, best, slots = surplus(layer, cap), 0.0, len(layer.slot_P)
    for i in range(n):
        expert = cut.expert_X[pair_K[i] // (slots * slots)]
        slot, place = pair_K[i] // slots % slots, pair_K[i] % slots
        moved, given = layer.slot_P[place]["expert"], layer.slot_P[slot]["expert"]
        begin(layer)
        replace(layer, slot, moved, cap)
        replace(layer, place, expert, cap)
        gain = now - surplus(layer, cap)
        undo(layer)
        set_expert(layer, place, moved)
        set_expert(layer, slot, given)
        if gain > best + TINY:
            best = gain
            change_4[0], change_4[1], change_4[2], change_4[3] = slot, moved, place, expert
    return best


@kernel
def list_pairs(layer: Layer, cut: Cut, experts: int, pair_K: Int64Array, score_K: FloatArray) -> int:
    """Lists the pairs that promise most, (expert of ``cut``, slot, place) as one number each: what the place
    could take in of the expert, less what its own expert brings to the hot side. Returns how many."""
    n, slots = 0, len(layer.slot_P)
    for place in range(slots):
        rank, moved = layer.slot_P[place]["rank"], layer.slot_P[place]["expert"]
        if layer.rank_G[rank]["side"] != COOL or moved < 0 or layer.expert_E[moved]["count"] > 1:
            continue
        tokens = layer.slot_P[place]["tokens"]
        room = layer.rank_G[layer.rank_G[rank]["part"]]["amount"] + tokens
        for slot in range(slots):
            given, other = layer.slot_P[slot]["expert"], layer.slot_P[slot]["rank"]
            alone = given >= 0 and layer.expert_E[given]["count"] == 1
            if other == rank or (alone and layer.rank_G[other]["side"] != HOT):
                continue
            lost = stranded(layer, slot) if layer.rank_G[other]["side"] == COOL and not alone else tokens
            for k in range(experts):
                score, expert = min(cut.out_X[k], room) - lost, cut.expert_X[k]
                if score <= TINY or (n == TRIALS and score <= score_K[n - 1]):
                    break
                if (not alone or given == expert) and not holds(layer, rank, expert):
                    number = (k * slots + slot) * slots + place
                    n = keep_best(pair_K, score_K, TRIALS, n, number, score)
    return n
