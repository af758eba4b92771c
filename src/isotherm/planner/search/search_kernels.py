"""The search that changes the slots of one layer until no rank is above a target, with few changes.

Heat in units of the mean load of a rank. Ties go to what was found first.
"""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.layers.layer import (
    Layer,
    begin,
    holds,
    peak_of,
    read_experts,
    set_expert,
    split_evenly,
    undo,
)
from isotherm.planner.layers.load_kernels import make_layer, settle
from isotherm.planner.layers.log_kernels import Log, is_full, is_read, new_log, note
from isotherm.planner.search.cut_kernels import Cut, best_replica, find_sides, new_cut
from isotherm.planner.search.even_kernels import Aim, climb_evenly, give
from isotherm.planner.search.exchange_kernels import best_pair
from isotherm.planner.search.flow_kernels import replace, surplus

MARGIN = 1e-7
"""The search goes this far below the target, so that no rounding leaves the layer above it."""
LEAST_GAIN = 1e-6
"""A change that takes less than this off the ranks above the target is none."""
NARROW = 1e-3
"""Where the target cannot be reached, the peak is brought within this of the lowest that can be found."""
ATTEMPTS = 4
DETOUR = 4e-3
"""So many caps are tried where balanced shares get stuck, each lower by so much than the one before."""
ASIDE = 0.012
"""Fewer changes are looked for on the way to a cap that is lower by so much, too: each step takes what helps
most, and a lower cap leads another way."""
MOST_WORK = 5_000
"""But not in a layer of more changes, times slots, than this."""
WEIGHTS = np.array([100.0, 2.0])
"""With even shares, what ranks above the target count against others. The first brings layers there with
fewest moves; where it ends above, the search begins anew with the next."""


@kernel
def search_layers(
    start_LP: Int64Array,
    heat_LE: FloatArray,
    target_L: FloatArray,
    ranks: int,
    balanced: bool,
    frugal: bool,
    goal_LP: Int64Array,
) -> None:
    """Writes to ``goal_LP`` placements near ``start_LP`` that keep each layer at its target, or as low as was
    found. If ``frugal``, changes that this does not need are taken back."""
    unread = new_log(start_LP[0], 0)
    for row in range(len(start_LP)):
        goal_LP[row] = start_LP[row]
        mean = heat_LE[row].sum() / ranks
        if mean <= 0.0:
            continue
        layer, cap = make_layer(start_LP[row], heat_LE[row] / mean, ranks, balanced), target_L[row] - MARGIN
        if peak_of(layer) <= target_L[row]:
            continue
        if balanced:
            layer = reach(layer, start_LP[row], cap, unread)
        else:
            lower_evenly(layer, start_LP[row], cap, unread)
        if frugal:
            prune(layer, start_LP[row], max(cap, peak_of(layer)))
        if frugal and balanced and surplus(layer, cap) <= 0.0:
            layer = do_with_fewer(layer, start_LP[row], cap)
        read_experts(layer, goal_LP[row])


@kernel
def reach(layer: Layer, start_P: Int64Array, cap: float, unread: Log) -> Layer:
    """The layer brought down to the cap, in one go; or, where that gets stuck, anew from the start with lower
    and lower caps, which leads other ways; or else as low as was found."""
    heat_E, ranks = layer.expert_E["heat"].copy(), len(layer.rank_G)
    for attempt in range(ATTEMPTS):
        if attempt > 0:
            layer = make_layer(start_P, heat_E, ranks, True)
        climb(layer, new_cut(layer), cap - attempt * DETOUR, unread)
        if surplus(layer, cap) <= 0.0:
            return layer
    lower(layer, cap, unread)
    return layer


@kernel
def trace_layer(heat_E: FloatArray, target: float, ranks: int, balanced: bool, log: Log) -> float:
    """Writes to ``log`` a way from its start down to the target, or as far as was found, and returns the
    highest load before it. The layer must have heat."""
    layer, cap = make_layer(log.start_P, heat_E / (heat_E.sum() / ranks), ranks, balanced), target - MARGIN
    before = peak_of(layer)
    if balanced:
        lower(layer, cap, log)
    else:
        climb_evenly(layer, Aim(cap, WEIGHTS[1]), log)
    return before


@kernel
def climb(layer: Layer, cut: Cut, cap: float, log: Log) -> None:
    """Changes slots while ranks are above the cap and a change helps."""
    change_2, change_4 = np.empty(2, np.int64), np.empty(4, np.int64)
    while surplus(layer, cap) > 0.0 and not is_full(log):
        find_sides(layer, cap)
        if best_replica(layer, cut, cap, change_2) > LEAST_GAIN:
            replace(layer, change_2[0], change_2[1], cap)
            note_settled(layer, change_2[0], -1, log)
        elif best_pair(layer, cut, cap, change_4) > LEAST_GAIN:
            replace(layer, change_4[0], change_4[1], cap)
            replace(layer, change_4[2], change_4[3], cap)
            note_settled(layer, change_4[0], change_4[2], log)
        else:
            return


@kernel
def note_settled(layer: Layer, slot: int, other: int, log: Log) -> None:
    """Notes what the one or two slots hold now; settles the loads for that, if anybody reads them."""
    if is_read(log):
        settle(layer)
        note(layer, slot, other, log)


@kernel
def lower(layer: Layer, cap: float, log: Log) -> None:
    """Lowers the peak towards a cap, halving the way that is left. Ends in the placement with the lowest
    peak, and its loads settled."""
    settle(layer)
    cut, best_P, best, low = new_cut(layer), np.empty(len(layer.slot_P), np.int64), peak_of(layer), cap
    read_experts(layer, best_P)
    while best > cap + MARGIN and best - low > NARROW and not is_full(log):
        step = cap if best - cap < 2 * NARROW else (low + best) / 2
        climb(layer, cut, step, log)
        if surplus(layer, step) > 0.0:
            low = max(low, step) + NARROW / 2
        settle(layer)
        if peak_of(layer) < best:
            best = peak_of(layer)
            read_experts(layer, best_P)
    if peak_of(layer) > best:
        for slot in range(len(best_P)):
            set_expert(layer, slot, best_P[slot])
        split_evenly(layer)
        settle(layer)


@kernel
def lower_evenly(layer: Layer, start_P: Int64Array, cap: float, log: Log) -> None:
    """Brings the peak down to the cap, or as low as was found, with the first weight that does it."""
    best_P, best = start_P.copy(), peak_of(layer)
    for weight in WEIGHTS:
        give_all(layer, start_P)
        climb_evenly(layer, Aim(cap, weight), log)
        if peak_of(layer) < best:
            best = peak_of(layer)
            read_experts(layer, best_P)
        if best <= cap:
            return
    give_all(layer, best_P)


@kernel
def give_all(layer: Layer, slot_expert_P: Int64Array) -> None:
    for slot in range(len(slot_expert_P)):
        give(layer, slot, slot_expert_P[slot])


@kernel
def put(layer: Layer, slot: int, expert: int, cap: float) -> None:
    """Gives the slot another expert, under the layer's shares."""
    if layer.balanced:
        replace(layer, slot, expert, cap)
    else:
        give(layer, slot, expert)


@kernel
def prune(layer: Layer, start_P: Int64Array, cap: float) -> None:
    """Gives changed slots their first experts back, as long as no rank comes above the cap."""
    change_4, found = np.empty(4, np.int64), True
    while found:
        found = False
        for slot in range(len(start_P)):
            if layer.slot_P[slot]["expert"] == start_P[slot] or not way_back(layer, start_P, slot, change_4):
                continue
            other, old, other_old = change_4[2], layer.slot_P[slot]["expert"], -1
            begin(layer)
            put(layer, slot, change_4[1], cap)
            if other >= 0:
                other_old = layer.slot_P[other]["expert"]
                put(layer, other, change_4[3], cap)
            if surplus(layer, cap) <= 0.0:
                found = True
                continue
            undo(layer)
            if other >= 0:
                set_expert(layer, other, other_old)
            set_expert(layer, slot, old)


@kernel
def count_changes(layer: Layer, start_P: Int64Array) -> int:
    changes = 0
    for slot in range(len(start_P)):
        changes += layer.slot_P[slot]["expert"] != start_P[slot]
    return changes


@kernel
def do_with_fewer(layer: Layer, start_P: Int64Array, cap: float) -> Layer:
    """The layer, which is without surplus and without changes that it does not need; or another such one,
    found on the way to a lower cap, if that has fewer changes."""
    changes = count_changes(layer, start_P)
    if changes <= 2 or changes * len(start_P) > MOST_WORK:
        return layer
    other = make_layer(start_P, layer.expert_E["heat"].copy(), len(layer.rank_G), True)
    climb(other, new_cut(other), cap - ASIDE, new_log(start_P, 0))
    if surplus(other, cap) > 0.0:
        return layer
    prune(other, start_P, cap)
    return other if count_changes(other, start_P) < changes else layer


@kernel
def way_back(layer: Layer, start_P: Int64Array, slot: int, change_4: Int64Array) -> bool:
    """Writes to ``change_4`` what gives a slot its first expert back; where that takes the last slot of
    the present one, that expert returns to a slot that it had. False where neither is possible."""
    old, first = layer.slot_P[slot]["expert"], start_P[slot]
    change_4[0], change_4[1], change_4[2], change_4[3] = slot, first, -1, -1
    if first >= 0 and holds(layer, layer.slot_P[slot]["rank"], first):
        return False
    if old < 0 or layer.expert_E[old]["count"] > 1:
        return True
    for other in range(len(start_P)):
        driven = layer.slot_P[other]["expert"]
        if start_P[other] == old and (driven < 0 or driven == first or layer.expert_E[driven]["count"] > 1):
            change_4[2], change_4[3] = other, old
            return True
    return False
