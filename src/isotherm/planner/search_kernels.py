"""The search that changes the slots of one layer, one replacement or one swap at a time.

Heat in units of the mean load of a rank. Ties go to what was found first.
"""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.layer import Layer, add_loads, copy_layer, list_slots
from isotherm.planner.load_kernels import make_layer, settle, share_out
from isotherm.planner.rate_kernels import excess, peak_of, rate_replacements, rate_shared_swaps, rate_swaps

MIN_STEP = 0.003
"""A step must take away at least this part of the excess per move."""
TRIALS = 4
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
def best_change(layer: Layer, trial: Layer, target: float, shared: bool, change_4: Int64Array) -> bool:
    """Writes to ``change_4`` the change that takes most of the excess away per move. False where none
    takes away enough. Experts of several slots are swapped only if ``shared``. ``trial`` is scratch."""
    score_K = np.empty(TRIALS if layer.balanced else 1)
    change_K4 = np.full((len(score_K), 4), -1)
    now = excess(layer.load_G, target)
    score_K[:] = MIN_STEP * now / 2
    rate_replacements(layer, target, score_K, change_K4)
    rate_swaps(layer, target, score_K, change_K4)
    if shared:
        rate_shared_swaps(layer, target, score_K, change_K4)
    best_gain = MIN_STEP * now
    for k in range(len(score_K)):
        if change_K4[k, 0] < 0:
            break
        copy_layer(trial, layer)
        change_slots(trial, change_K4[k])
        gain = (now - excess(trial.load_G, target)) / (2 if change_K4[k, 2] >= 0 else 1)
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
    steps_KP: Int64Array,
    peak_K: FloatArray,
) -> int:
    """Changes slots while the layer is above its target and a change helps. Row ``k`` of ``steps_KP``
    is the placement after ``k`` steps, ``peak_K[k]`` its highest load. Returns the number of rows."""
    layer = make_layer(start_P, heat_E, ranks, balanced)
    trial = make_layer(start_P, heat_E, ranks, balanced)
    change_4 = np.empty(4, np.int64)
    for row in range(len(peak_K)):
        steps_KP[row] = layer.slot_expert_P
        peak_K[row] = peak_of(layer.load_G)
        if peak_K[row] <= target:
            return row + 1
        # To rate swaps of shared experts takes long, so balanced shares try them last.
        found = balanced and best_change(layer, trial, target, False, change_4)
        if not found and not best_change(layer, trial, target, True, change_4):
            return row + 1
        change_slots(layer, change_4)
    return len(peak_K)
