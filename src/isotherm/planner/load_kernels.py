"""What each slot and each rank of a layer gets: evenly, or so that the hottest rank carries least."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.layer import Layer, add_loads, new_layer, split_evenly
from isotherm.planner.level_kernels import level_out


@kernel
def make_layer(slot_expert_P: Int64Array, heat_E: FloatArray, ranks: int, balanced: bool) -> Layer:
    """The layer with its loads settled."""
    layer = new_layer(slot_expert_P, heat_E, ranks, balanced)
    settle(layer)
    return layer


@kernel
def balanced_peak(slot_expert_P: Int64Array, heat_E: FloatArray, ranks: int) -> float:
    """The highest load under balanced shares, in the unit of heat, which must not be all zero."""
    mean = heat_E.sum() / ranks
    peak: float = make_layer(slot_expert_P, heat_E / mean, ranks, True).load_G.max() * mean
    return peak


@kernel
def settle(layer: Layer) -> None:
    """Brings tokens and loads to the layer's shares; balanced ones from tokens that add up."""
    if layer.balanced:
        add_loads(layer)
        level_out(layer)
        add_loads(layer)
    else:
        split_evenly(layer)


@kernel
def water_fill(load_G: FloatArray, rank_X: Int64Array, n: int, heat: float, amount_X: FloatArray) -> None:
    """Writes to ``amount_X`` what each of ``rank_X[:n]`` gets of ``heat`` so that the highest of them
    stays lowest: all that get any end at one level. Ranks above the level drop out until none does."""
    if n == 2:
        amount = (heat + load_G[rank_X[1]] - load_G[rank_X[0]]) / 2
        amount_X[0] = min(max(amount, 0.0), heat)
        amount_X[1] = heat - amount_X[0]
        return
    level, active, coldest = np.inf, n + 1, 0
    while True:
        total, count = heat, 0
        for i in range(n):
            base = load_G[rank_X[i]]
            if base < level:
                total += base
                count += 1
            if base < load_G[rank_X[coldest]]:
                coldest = i
        if count >= active or count == 0:
            break
        level, active = total / count, count
    poured = 0.0
    for i in range(n):
        amount_X[i] = max(0.0, level - load_G[rank_X[i]])
        poured += amount_X[i]
    for i in range(n):  # the level minus the load rounds; the sum must not
        if poured > 0.0:
            amount_X[i] *= heat / poured
        else:
            amount_X[i] = heat if i == coldest else 0.0


@kernel
def share_out(layer: Layer, expert: int) -> None:
    """Water-fills one expert over its ranks, the rest as it is. Replicas on one rank split evenly what the
    rank gets."""
    first, last = layer.start_E1[expert], layer.start_E1[expert + 1]
    rank_X, amount_X, slots_P = layer.rank_X, layer.amount_X, layer.slots_P
    n = 0
    for i in range(first, last):
        rank = layer.rank_P[slots_P[i]]
        layer.load_G[rank] -= layer.tokens_P[slots_P[i]]
        if n == 0 or rank_X[n - 1] != rank:
            rank_X[n] = rank
            n += 1
    water_fill(layer.load_G, rank_X, n, layer.heat_E[expert], amount_X)
    i = first
    for k in range(n):
        begin = i
        while i < last and layer.rank_P[slots_P[i]] == rank_X[k]:
            i += 1
        for j in range(begin, i):
            layer.tokens_P[slots_P[j]] = amount_X[k] / (i - begin)
        layer.load_G[rank_X[k]] += amount_X[k]
