"""One layer: which slots its experts have, what each slot gets, what each rank carries.

Heat comes in units of the mean load of a rank, so that 1 is perfect balance and thresholds are plain
numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel

SWEEPS = 5000
TOLERANCE = 1e-9


class Layer(NamedTuple):
    """One layer and its settled loads. The slots of expert ``e`` are, ascending,
    ``slots_P[start_E1[e] : start_E1[e + 1]]``. The last two are scratch."""

    slot_expert_P: Int64Array
    heat_E: FloatArray
    tokens_P: FloatArray
    load_G: FloatArray
    start_E1: Int64Array
    slots_P: Int64Array
    slots_per_rank: int
    balanced: bool
    rank_X: Int64Array
    amount_X: FloatArray


@kernel
def make_layer(slot_expert_P: Int64Array, heat_E: FloatArray, ranks: int, balanced: bool) -> Layer:
    """The layer with its loads settled, from an even split."""
    slots = len(slot_expert_P)
    layer = Layer(
        slot_expert_P.copy(),
        heat_E,
        np.zeros(slots),
        np.zeros(ranks),
        np.zeros(len(heat_E) + 1, np.int64),
        np.zeros(slots, np.int64),
        slots // ranks,
        balanced,
        np.zeros(slots + 1, np.int64),
        np.zeros(slots + 1),
    )
    list_slots(layer)
    split_evenly(layer)
    settle(layer, SWEEPS, TOLERANCE)
    return layer


@kernel
def copy_layer(to: Layer, source: Layer) -> None:
    """Makes ``to`` what ``source`` is; both must have the same heat and shares."""
    for slot in range(len(source.slots_P)):
        to.slot_expert_P[slot] = source.slot_expert_P[slot]
        to.tokens_P[slot] = source.tokens_P[slot]
        to.slots_P[slot] = source.slots_P[slot]
    for expert in range(len(source.start_E1)):
        to.start_E1[expert] = source.start_E1[expert]
    for rank in range(len(source.load_G)):
        to.load_G[rank] = source.load_G[rank]


@kernel
def list_slots(layer: Layer) -> None:
    """Brings ``start_E1`` and ``slots_P`` to ``slot_expert_P`` (a counting sort)."""
    start_E1 = layer.start_E1
    for expert in range(len(start_E1)):
        start_E1[expert] = 0
    for expert in layer.slot_expert_P:
        if expert >= 0:
            start_E1[expert] += 1
    total = 0
    for expert in range(len(start_E1)):
        total += start_E1[expert]
        start_E1[expert] = total
    for slot in range(len(layer.slot_expert_P) - 1, -1, -1):
        expert = layer.slot_expert_P[slot]
        if expert >= 0:
            start_E1[expert] -= 1
            layer.slots_P[start_E1[expert]] = slot


@kernel
def split_evenly(layer: Layer) -> None:
    for expert in range(len(layer.heat_E)):
        first, last = layer.start_E1[expert], layer.start_E1[expert + 1]
        for i in range(first, last):
            layer.tokens_P[layer.slots_P[i]] = layer.heat_E[expert] / (last - first)


@kernel
def water_fill(load_G: FloatArray, rank_X: Int64Array, n: int, heat: float, amount_X: FloatArray) -> None:
    """Writes to ``amount_X`` what each of ``rank_X[:n]`` gets of ``heat`` so that the highest of them
    stays lowest: all that get any end at one level. Ranks above the level drop out until none does."""
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
def share_out(layer: Layer, expert: int) -> float:
    """Water-fills one expert over its ranks, the rest as it is. Returns the largest change of a rank.
    Replicas on one rank split evenly what the rank gets."""
    first, last = layer.start_E1[expert], layer.start_E1[expert + 1]
    rank_X, amount_X = layer.rank_X, layer.amount_X
    n = 0
    for i in range(first, last):
        rank = layer.slots_P[i] // layer.slots_per_rank
        layer.load_G[rank] -= layer.tokens_P[layer.slots_P[i]]
        if n == 0 or rank_X[n - 1] != rank:
            rank_X[n] = rank
            n += 1
    water_fill(layer.load_G, rank_X, n, layer.heat_E[expert], amount_X)
    change, i = 0.0, first
    for k in range(n):
        before, begin = 0.0, i
        while i < last and layer.slots_P[i] // layer.slots_per_rank == rank_X[k]:
            before += layer.tokens_P[layer.slots_P[i]]
            i += 1
        for j in range(begin, i):
            layer.tokens_P[layer.slots_P[j]] = amount_X[k] / (i - begin)
        layer.load_G[rank_X[k]] += amount_X[k]
        change = max(change, abs(amount_X[k] - before))
    return change


@kernel
def settle(layer: Layer, sweeps: int, tolerance: float) -> None:
    """Brings tokens and loads to the layer's shares. Balanced ones start from the tokens as they are,
    one expert after the other, until a sweep changes no rank by ``tolerance`` of the mean."""
    if not layer.balanced:
        split_evenly(layer)
    shared_E, num_shared = np.empty(len(layer.heat_E), np.int64), 0
    for expert in range(len(layer.heat_E)):
        replicas = layer.start_E1[expert + 1] - layer.start_E1[expert]
        if replicas == 1:
            layer.tokens_P[layer.slots_P[layer.start_E1[expert]]] = layer.heat_E[expert]
        elif layer.heat_E[expert] > 0.0:
            shared_E[num_shared] = expert
            num_shared += 1
    for rank in range(len(layer.load_G)):
        layer.load_G[rank] = 0.0
    for slot in range(len(layer.tokens_P)):
        layer.load_G[slot // layer.slots_per_rank] += layer.tokens_P[slot]
    for _ in range(sweeps if layer.balanced else 0):
        change = 0.0
        for i in range(num_shared):
            change = max(change, share_out(layer, shared_E[i]))
        if change <= tolerance:
            return
