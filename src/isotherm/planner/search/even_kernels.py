"""The search where each replica of an expert gets the same: every change is told exactly from the ranks it
touches.

The excess of a layer is how far its ranks are from the mean. Ties go to what was found first, in ascending
order of slots and experts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.layers.layer import Layer, begin, holds, peak_of, set_expert, set_load, set_tokens, undo
from isotherm.planner.layers.log_kernels import Log, is_full, note
from isotherm.planner.search.cut_kernels import keep_best

HOT = 1e-3
"""Ranks within this of the highest load are hot: lowering the peak starts from their experts."""
MIN_STEP = 0.003
"""A step must take away at least this part of the excess per move."""

REDUNDANT = 16
"""So many redundant slots are tried for an expert that makes room elsewhere."""


class Aim(NamedTuple):
    """What the search is after: no rank above ``target``. A rank above it counts ``weight`` times."""

    target: float
    weight: float


@kernel
def excess_of(load: float, aim: Aim) -> float:
    """How far one rank is from the mean: the square, and more of it above the target."""
    square = (load - 1.0) * (load - 1.0)
    return aim.weight * square if load >= aim.target else square


@kernel
def excess(layer: Layer, aim: Aim) -> float:
    """How far the ranks are from the mean, added up."""
    total = 0.0
    for rank in range(len(layer.rank_G)):
        total += excess_of(layer.rank_G[rank]["load"], aim)
    return total


@kernel
def gained(layer: Layer, aim: Aim) -> float:
    """How much the excess fell since the journal began."""
    gain = 0.0
    for i in range(layer.count_4[3]):
        rank = layer.rank_G[i]["touched"]
        gain += excess_of(layer.rank_G[rank]["former"], aim) - excess_of(layer.rank_G[rank]["load"], aim)
    return gain


@kernel
def resplit(layer: Layer, expert: int, left: int, joined: int) -> None:
    """Brings the loads to what they are when the expert has left slot ``left`` and joined rank ``joined``
    (-1: neither). Tokens stay as they are."""
    count = layer.expert_E[expert]["count"] - (left >= 0) + (joined >= 0)
    each = layer.expert_E[expert]["heat"] / max(count, 1)
    slot = layer.expert_E[expert]["first"]
    while slot >= 0:
        rank, more = layer.slot_P[slot]["rank"], -layer.slot_P[slot]["tokens"]
        if slot != left:
            more += each
        set_load(layer, rank, layer.rank_G[rank]["load"] + more)
        slot = layer.slot_P[slot]["next"]
    if joined >= 0:
        set_load(layer, joined, layer.rank_G[joined]["load"] + each)


@kernel
def give(layer: Layer, slot: int, expert: int) -> None:
    """Gives the slot another expert, or none (-1), and settles tokens and loads."""
    old = layer.slot_P[slot]["expert"]
    if old == expert:
        return
    if old >= 0:
        resplit(layer, old, slot, -1)
    if expert >= 0:
        resplit(layer, expert, -1, layer.slot_P[slot]["rank"])
    set_tokens(layer, slot, 0.0)
    set_expert(layer, slot, expert)
    for each in (old, expert):
        other = layer.expert_E[each]["first"] if each >= 0 else -1
        while other >= 0:
            set_tokens(layer, other, layer.expert_E[each]["heat"] / layer.expert_E[each]["count"])
            other = layer.slot_P[other]["next"]


@kernel
def rate(layer: Layer, aim: Aim, slot: int, expert: int, other: int, swapped: int) -> float:
    """By how much the excess falls where ``slot`` gets ``expert`` and, unless it is -1, ``other`` gets
    ``swapped``."""
    begin(layer)
    if layer.slot_P[slot]["expert"] >= 0:
        joined = layer.slot_P[other]["rank"] if other >= 0 else -1
        resplit(layer, layer.slot_P[slot]["expert"], slot, joined)
    left = other if other >= 0 else -1
    resplit(layer, expert, left, layer.slot_P[slot]["rank"])
    gain = gained(layer, aim)
    undo(layer)
    return gain


@kernel
def hottest_rank(layer: Layer) -> int:
    hottest = 0
    for rank in range(len(layer.rank_G)):
        if layer.rank_G[rank]["load"] > layer.rank_G[hottest]["load"]:
            hottest = rank
    return hottest


@kernel
def mark_useful(layer: Layer, aim: Aim, hot: float) -> int:
    """Marks in ``seen`` the experts that a hot rank holds, and writes to ``relief`` of each how much the
    excess of its ranks falls where it gets one more replica elsewhere. Returns the mark."""
    layer.count_4[0] += 1
    for expert in range(len(layer.expert_E)):
        count, relief = layer.expert_E[expert]["count"], 0.0
        part, slot = layer.expert_E[expert]["heat"] / (count + 1), layer.expert_E[expert]["first"]
        while slot >= 0:
            rank, less = layer.slot_P[slot]["rank"], 0.0
            while slot >= 0 and layer.slot_P[slot]["rank"] == rank:
                less += layer.slot_P[slot]["tokens"] - part
                slot = layer.slot_P[slot]["next"]
            load = layer.rank_G[rank]["load"]
            relief += excess_of(load, aim) - excess_of(load - less, aim)
            if load >= hot:
                layer.expert_E[expert]["seen"] = layer.count_4[0]
        layer.expert_E[expert]["relief"] = relief
    return int(layer.count_4[0])


@kernel
def leave(layer: Layer, aim: Aim, slot: int) -> tuple[float, float]:
    """By how much the excess falls where the slot's expert leaves it, and what its rank carries then. Marks
    in ``seen`` the ranks that feel it. Changes nothing."""
    begin(layer)
    layer.count_4[0] += 1
    if layer.slot_P[slot]["expert"] >= 0:
        resplit(layer, layer.slot_P[slot]["expert"], slot, -1)
    gain, load = gained(layer, aim), layer.rank_G[layer.slot_P[slot]["rank"]]["load"]
    for i in range(layer.count_4[3]):
        layer.rank_G[layer.rank_G[i]["touched"]]["seen"] = layer.count_4[0]
    undo(layer)
    return gain, load


@kernel
def feels(layer: Layer, expert: int) -> bool:
    """Whether a rank of the expert was marked last."""
    slot = layer.expert_E[expert]["first"]
    while slot >= 0:
        if layer.rank_G[layer.slot_P[slot]["rank"]]["seen"] == layer.count_4[0]:
            return True
        slot = layer.slot_P[slot]["next"]
    return False


@kernel
def best_replacement(layer: Layer, aim: Aim, least: float, change_4: Int64Array) -> float:
    """Writes to ``change_4`` the other expert for an empty or redundant slot that gains most, and more than
    ``least``, and returns how much: one that gives tokens to a hot rank, or any at all where the slot
    itself is on one. What one gains by leaving and the other by joining adds up, unless they share ranks."""
    hot, best = peak_of(layer) * (1 - HOT), least
    useful = mark_useful(layer, aim, hot)
    for slot in range(len(layer.slot_P)):
        rank, old = layer.slot_P[slot]["rank"], layer.slot_P[slot]["expert"]
        if old >= 0 and layer.expert_E[old]["count"] == 1:
            continue
        left, load = leave(layer, aim, slot)
        for expert in range(len(layer.expert_E)):
            if layer.rank_G[rank]["load"] < hot and layer.expert_E[expert]["seen"] != useful:
                continue
            part = layer.expert_E[expert]["heat"] / (layer.expert_E[expert]["count"] + 1)
            joined = excess_of(load, aim) - excess_of(load + part, aim)
            gain = left + layer.expert_E[expert]["relief"] + joined
            shared = feels(layer, expert)
            if (gain <= best and not shared) or holds(layer, rank, expert):
                continue
            if shared:
                gain = rate(layer, aim, slot, expert, -1, -1)
            if gain > best:
                best = gain
                change_4[0], change_4[1], change_4[2], change_4[3] = slot, expert, -1, -1
    return best


@kernel
def best_swap(layer: Layer, aim: Aim, least: float, shared: bool, change_4: Int64Array) -> float:
    """Writes to ``change_4`` the swap of an expert of the hottest rank with one of a rank below the target
    that gains most per move, and more than ``least``, and returns how much: of experts with one slot, which
    two ranks alone feel, or, if ``shared``, of two of which one at least has several."""
    hottest, size, best = hottest_rank(layer), layer.slots_per_rank, least
    hot = layer.rank_G[hottest]["load"]
    for other in range(len(layer.slot_P)):
        swapped, to = layer.slot_P[other]["expert"], layer.slot_P[other]["rank"]
        cold = layer.rank_G[to]["load"]
        if swapped < 0 or cold >= aim.target or holds(layer, hottest, swapped):
            continue
        before = excess_of(hot, aim) + excess_of(cold, aim)
        for slot in range(hottest * size, (hottest + 1) * size):
            expert = layer.slot_P[slot]["expert"]
            moved = layer.slot_P[slot]["tokens"] - layer.slot_P[other]["tokens"]
            if moved <= 0.0 or holds(layer, to, expert):
                continue
            one_each = layer.expert_E[expert]["count"] == 1 and layer.expert_E[swapped]["count"] == 1
            if one_each == shared:
                continue
            if shared:
                gain = rate(layer, aim, slot, swapped, other, expert) / 2
            else:
                gain = (before - excess_of(hot - moved, aim) - excess_of(cold + moved, aim)) / 2
            if gain > best:
                best = gain
                change_4[0], change_4[1], change_4[2], change_4[3] = slot, swapped, other, expert
    return best


@kernel
def best_relocation(layer: Layer, aim: Aim, least: float, change_4: Int64Array) -> float:
    """Writes to ``change_4`` the best way to give the expert that would relieve the hottest rank most a place
    where no redundant slot is: an expert of one slot makes room there and goes to a redundant slot elsewhere,
    one of those that are left best. Returns what it gains per move, if more than ``least``."""
    hottest, size, best, expert, relief = hottest_rank(layer), layer.slots_per_rank, least, -1, 0.0
    mark_useful(layer, aim, np.inf)
    for slot in range(hottest * size, (hottest + 1) * size):
        held = layer.slot_P[slot]["expert"]
        if held >= 0 and layer.expert_E[held]["relief"] > relief:
            expert, relief = held, layer.expert_E[held]["relief"]
    slot_K, gain_K = np.empty(REDUNDANT, np.int64), np.empty(REDUNDANT)
    n = list_redundant(layer, aim, expert, slot_K, gain_K) if expert >= 0 else 0
    for place in range(len(layer.slot_P) if n > 0 else 0):
        moved, rank = layer.slot_P[place]["expert"], layer.slot_P[place]["rank"]
        if moved < 0 or layer.expert_E[moved]["count"] > 1 or holds(layer, rank, expert):
            continue
        for i in range(n):
            slot = slot_K[i]
            if layer.slot_P[slot]["rank"] == rank:
                continue
            begin(layer)
            if layer.slot_P[slot]["expert"] >= 0:
                resplit(layer, layer.slot_P[slot]["expert"], slot, -1)
            resplit(layer, moved, place, layer.slot_P[slot]["rank"])
            resplit(layer, expert, -1, rank)
            gain = gained(layer, aim) / 2
            undo(layer)
            if gain > best:
                best = gain
                change_4[0], change_4[1], change_4[2], change_4[3] = slot, moved, place, expert
    return best


@kernel
def list_redundant(layer: Layer, aim: Aim, expert: int, slot_K: Int64Array, gain_K: FloatArray) -> int:
    """Writes to ``slot_K`` the empty or redundant slots without ``expert`` that gain most by being left, and
    returns how many."""
    n = 0
    for slot in range(len(layer.slot_P)):
        held = layer.slot_P[slot]["expert"]
        if held != expert and (held < 0 or layer.expert_E[held]["count"] > 1):
            n = keep_best(slot_K, gain_K, len(slot_K), n, slot, leave(layer, aim, slot)[0])
    return n


@kernel
def climb_evenly(layer: Layer, aim: Aim, log: Log) -> None:
    """Changes slots while the layer is above its target and a change gains enough: a swap of shared experts
    only where nothing else does, since to rate those takes long, and a relocation only where no swap does."""
    change_4 = np.empty(4, np.int64)
    while peak_of(layer) > aim.target and not is_full(log):
        least = MIN_STEP * excess(layer, aim)
        best = best_replacement(layer, aim, least, change_4)
        best = best_swap(layer, aim, best, False, change_4)
        if best <= least:
            best = best_swap(layer, aim, least, True, change_4)
        if best <= least and best_relocation(layer, aim, least, change_4) <= least:
            return
        give(layer, change_4[0], -1)
        if change_4[2] >= 0:
            give(layer, change_4[2], change_4[3])
        give(layer, change_4[0], change_4[1])
        note(layer, change_4[0], change_4[2], log)
