"""The search that changes the slots of one layer, one replacement or one swap at a time.

Heat in units of the mean load of a rank. Ties go to what was found first.
"""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.layer import Layer, add_loads, copy_layer, has_one_slot, holds, list_slots, new_layer
from isotherm.planner.load_kernels import make_layer, settle, share_out
from isotherm.planner.rate_kernels import (
    Aim,
    excess,
    peak_of,
    rate_replacements,
    rate_shared_swaps,
    rate_swaps,
)

MIN_STEP = 0.003
"""A step must take away at least this part of the excess per move."""
WEIGHTS = np.array([100.0, 2.0])
"""What ranks above the target count against others. The first brings layers there with fewest moves; where it
ends above, the search begins anew with the next."""
TRIALS = 5
"""So many of the changes that look best are tried out with their true shares."""


@kernel
def change_slots(layer: Layer, change_4: Int64Array) -> None:
    """Makes the change and settles the loads."""
    former_4 = np.full(4, -1)
    for i in (0, 2):
        slot = change_4[i]
        if slot >= 0:
            former_4[i], former_4[i + 1] = layer.slot_expert_P[slot], change_4[i + 1]
            layer.slot_expert_P[slot] = change_4[i + 1]
            layer.tokens_P[slot] = 0.0
    list_slots(layer)
    if layer.balanced:
        add_loads(layer)
        for expert in former_4:
            if expert >= 0:
                share_out(layer, expert)
    settle(layer)


@kernel
def best_change(layer: Layer, trial: Layer, aim: Aim, shared: bool, change_4: Int64Array) -> bool:
    """Writes to ``change_4`` the change that takes most of the excess away per move. False where none
    takes away enough. Experts of several slots are swapped only if ``shared``. ``trial`` is scratch."""
    score_K = np.empty(TRIALS if layer.balanced else 1)
    change_K4 = np.full((len(score_K), 4), -1)
    now = excess(layer.load_G, aim)
    score_K[:] = MIN_STEP * now / 2
    rate_replacements(layer, aim, score_K, change_K4)
    rate_swaps(layer, aim, score_K, change_K4)
    if shared:
        rate_shared_swaps(layer, aim, score_K, change_K4)
    best_gain = MIN_STEP * now
    for k in range(len(score_K)):
        if change_K4[k, 0] < 0:
            break
        copy_layer(trial, layer)
        change_slots(trial, change_K4[k])
        gain = (now - excess(trial.load_G, aim)) / (2 if change_K4[k, 2] >= 0 else 1)
        if gain > best_gain:
            best_gain = gain
            change_4[:] = change_K4[k]
    return bool(best_gain > MIN_STEP * now)


@kernel
def search_layer(
    start_P: Int64Array,
    heat_E: FloatArray,
    ranks: int,
    balanced: bool,
    target: float,
    frugal: bool,
    steps_KP: Int64Array,
    peak_K: FloatArray,
) -> int:
    """Searches from ``start_P``. Row ``k`` of ``steps_KP`` is a placement on the way, the first the start
    itself, and ``peak_K[k]`` its highest load. Returns the number of rows."""
    layer = make_layer(start_P, heat_E, ranks, balanced)
    trial = new_layer(start_P, heat_E, ranks, balanced)
    rows, room = 0, len(peak_K) // len(WEIGHTS)
    for weight in WEIGHTS[: len(WEIGHTS) if frugal else 1]:
        if rows > 0:
            layer = make_layer(start_P, heat_E, ranks, balanced)
        last = rows + room - 1
        rows = climb(layer, trial, Aim(target, weight), steps_KP[:last], peak_K[:last], rows)
        if frugal and peak_K[rows - 1] <= target:
            prune(layer, trial, start_P, target)
            steps_KP[rows], peak_K[rows] = layer.slot_expert_P, peak_of(layer.load_G)
            rows += 1
        if peak_K[rows - 1] <= target:
            break
    return rows


@kernel
def climb(layer: Layer, trial: Layer, aim: Aim, steps_KP: Int64Array, peak_K: FloatArray, row: int) -> int:
    """Changes slots while the layer is above its target and a change helps, and writes the way from
    ``row`` on. Returns the row behind its end. ``trial`` is scratch."""
    change_4 = np.empty(4, np.int64)
    while row < len(peak_K):
        steps_KP[row] = layer.slot_expert_P
        peak_K[row] = peak_of(layer.load_G)
        row += 1
        if peak_K[row - 1] <= aim.target:
            break
        # To rate swaps of shared experts takes long, so balanced shares try them last.
        found = layer.balanced and best_change(layer, trial, aim, False, change_4)
        if not found and not best_change(layer, trial, aim, True, change_4):
            break
        change_slots(layer, change_4)
    return row


@kernel
def prune(layer: Layer, trial: Layer, start_P: Int64Array, target: float) -> None:
    """Gives changed slots their first experts back, always that after which the peak is lowest, as long as
    it stays within ``target``. ``trial`` is scratch."""
    change_4 = np.empty(4, np.int64)
    while True:
        best, best_peak = -1, np.inf
        for slot in range(len(start_P)):
            if layer.slot_expert_P[slot] == start_P[slot] or not way_back(layer, start_P, slot, change_4):
                continue
            copy_layer(trial, layer)
            change_slots(trial, change_4)
            peak = peak_of(trial.load_G)
            if peak <= target and peak < best_peak:
                best, best_peak = slot, peak
        if best < 0:
            return
        way_back(layer, start_P, best, change_4)
        change_slots(layer, change_4)


@kernel
def way_back(layer: Layer, start_P: Int64Array, slot: int, change_4: Int64Array) -> bool:
    """Writes to ``change_4`` what gives a slot its first expert back; where that takes the last slot of
    the present one, that expert returns to a slot that it had. False where neither is possible."""
    old, first = layer.slot_expert_P[slot], start_P[slot]
    change_4[0], change_4[1], change_4[2], change_4[3] = slot, first, -1, -1
    if first >= 0 and holds(layer, layer.rank_P[slot], first):
        return False
    if old < 0 or not has_one_slot(layer, old):
        return True
    for other in range(len(start_P)):
        driven = layer.slot_expert_P[other]
        if start_P[other] == old and (driven < 0 or driven == first or not has_one_slot(layer, driven)):
            change_4[2], change_4[3] = other, old
            return True
    return False
