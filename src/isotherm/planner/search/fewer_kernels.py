"""Fewer changes for the same target: one slot instead of two.

The search takes what helps most at each step, and what it takes later may make up for the work of two that
came before. Where all changed slots together keep every rank at the cap, two of them are given their first
experts back, and one slot is looked for that alone takes off what is then above it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.layers.layer import Layer, holds, set_expert
from isotherm.planner.search.cut_kernels import Cut, best_replica, find_sides
from isotherm.planner.search.flow_kernels import TINY, replace, surplus


class Written(NamedTuple):
    """What a layer was like."""

    expert_P: Int64Array
    tokens_P: FloatArray
    load_G: FloatArray


@kernel
def one_for_two(layer: Layer, cut: Cut, start_P: Int64Array, cap: float, most: float) -> bool:
    """Changes one slot instead of two, where that keeps every rank at the cap; False where no two were found
    that allow it, and the layer is then as it was. No rank may be above the cap. One change is taken to help
    by no more than ``most``."""
    change_2, whole, part = np.empty(2, np.int64), write_down(layer), write_down(layer)
    changed_X = np.flatnonzero(whole.expert_P != start_P)
    for i in range(len(changed_X) - 1):
        if put_back(layer, start_P, changed_X[i], cap):
            write_again(layer, part)
            for j in range(i + 1, len(changed_X)):
                if put_back(layer, start_P, changed_X[j], cap):
                    if take_off(layer, cut, cap, most, change_2):
                        return True
                    put_as(layer, part)
        put_as(layer, whole)
    return False


@kernel
def put_back(layer: Layer, start_P: Int64Array, slot: int, cap: float) -> bool:
    """Gives a slot its first expert back; False where its rank has that already, or no other slot has the
    present one."""
    old, first = layer.slot_P[slot]["expert"], start_P[slot]
    if first >= 0 and holds(layer, layer.slot_P[slot]["rank"], first):
        return False
    if old >= 0 and layer.expert_E[old]["count"] == 1:
        return False
    replace(layer, slot, first, cap)
    return True


@kernel
def take_off(layer: Layer, cut: Cut, cap: float, most: float, change_2: Int64Array) -> bool:
    """Changes the one slot that takes off all that is above the cap, if anything is; False where no slot
    does."""
    above = surplus(layer, cap)
    if above <= 0.0:
        return True
    if above > most:
        return False
    find_sides(layer, cap)
    if best_replica(layer, cut, cap, above - 2 * TINY, change_2) <= above - 2 * TINY:
        return False
    replace(layer, change_2[0], change_2[1], cap)
    return surplus(layer, cap) <= 0.0


@kernel
def write_down(layer: Layer) -> Written:
    return Written(layer.slot_P["expert"].copy(), layer.slot_P["tokens"].copy(), layer.rank_G["load"].copy())


@kernel
def write_again(layer: Layer, written: Written) -> None:
    """Writes down, in the place of what was, what is now."""
    for slot in range(len(written.expert_P)):
        written.expert_P[slot] = layer.slot_P[slot]["expert"]
        written.tokens_P[slot] = layer.slot_P[slot]["tokens"]
    for rank in range(len(written.load_G)):
        written.load_G[rank] = layer.rank_G[rank]["load"]


@kernel
def put_as(layer: Layer, written: Written) -> None:
    """Brings the layer to what was written down."""
    for slot in range(len(written.expert_P)):
        if layer.slot_P[slot]["expert"] != written.expert_P[slot]:
            set_expert(layer, slot, written.expert_P[slot])
        layer.slot_P[slot]["tokens"] = written.tokens_P[slot]
    for rank in range(len(written.load_G)):
        layer.rank_G[rank]["load"] = written.load_G[rank]
