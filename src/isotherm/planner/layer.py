"""One layer in the kernels: which slots its experts have, what each slot gets, what each rank carries.

Heat comes in units of the mean load of a rank, so that 1 is perfect balance and thresholds are plain
numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import BoolArray, FloatArray, Int64Array
from isotherm.jit import kernel


class Walk(NamedTuple):
    """Scratch of the walks over ranks. The slots of rank ``g`` whose experts have others too are
    ``shared_P[shared_G1[g] : shared_G1[g + 1]]``."""

    group_G: Int64Array
    order_G: Int64Array
    end_G: Int64Array
    queue_G: Int64Array
    from_slot_G: Int64Array
    to_slot_G: Int64Array
    reached_G: BoolArray
    shared_P: Int64Array
    shared_G1: Int64Array


class Layer(NamedTuple):
    """One layer and its settled loads. The slots of expert ``e`` are, ascending,
    ``slots_P[start_E1[e] : start_E1[e + 1]]``; an empty slot holds expert -1 and gets no tokens. The last
    three are scratch."""

    slot_expert_P: Int64Array
    rank_P: Int64Array
    heat_E: FloatArray
    tokens_P: FloatArray
    load_G: FloatArray
    start_E1: Int64Array
    slots_P: Int64Array
    slots_per_rank: int
    balanced: bool
    rank_X: Int64Array
    amount_X: FloatArray
    walk: Walk


@kernel
def new_layer(slot_expert_P: Int64Array, heat_E: FloatArray, ranks: int, balanced: bool) -> Layer:
    """The layer, with every expert split evenly over its slots."""
    slots = len(slot_expert_P)
    walk = Walk(
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.bool_),
        np.zeros(slots, np.int64),
        np.zeros(ranks + 1, np.int64),
    )
    layer = Layer(
        slot_expert_P.copy(),
        np.arange(slots) // (slots // ranks),
        heat_E,
        np.zeros(slots),
        np.zeros(ranks),
        np.zeros(len(heat_E) + 1, np.int64),
        np.zeros(slots, np.int64),
        slots // ranks,
        balanced,
        np.zeros(slots + 1, np.int64),
        np.zeros(slots + 1),
        walk,
    )
    list_slots(layer)
    split_evenly(layer)
    return layer


@kernel
def copy_layer(to: Layer, source: Layer) -> None:
    """Makes ``to`` what ``source`` is; both must have the same heat, ranks and shares."""
    to.slot_expert_P[:] = source.slot_expert_P
    to.tokens_P[:] = source.tokens_P
    to.slots_P[:] = source.slots_P
    to.start_E1[:] = source.start_E1
    to.load_G[:] = source.load_G


@kernel
def list_slots(layer: Layer) -> None:
    """Brings ``start_E1`` and ``slots_P`` to ``slot_expert_P`` (a counting sort)."""
    start_E1 = layer.start_E1
    start_E1[:] = 0
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
    add_loads(layer)


@kernel
def add_loads(layer: Layer) -> None:
    """Adds up the loads from the tokens of all slots."""
    layer.load_G[:] = 0.0
    for slot in range(len(layer.tokens_P)):
        layer.load_G[layer.rank_P[slot]] += layer.tokens_P[slot]


@kernel
def has_one_slot(layer: Layer, expert: int) -> bool:
    return bool(layer.start_E1[expert + 1] - layer.start_E1[expert] == 1)


@kernel
def holds(layer: Layer, rank: int, expert: int) -> bool:
    for i in range(layer.start_E1[expert], layer.start_E1[expert + 1]):
        if layer.rank_P[layer.slots_P[i]] == rank:
            return True
    return False
