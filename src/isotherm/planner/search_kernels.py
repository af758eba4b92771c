"""The search that changes the slots of one layer, one replacement or one swap at a time.

Heat in units of the mean load of a rank. Ties go to what was found first, in ascending order of slots
and experts.
"""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.load_kernels import Layer, copy_layer, list_slots, settle, water_fill

HOT = 1e-3
"""Ranks within this of the highest load are hot: lowering the peak starts from their experts."""
MIN_STEP = 0.003
"""A step must take away at least this part of the excess per move."""
TRIALS = 4
"""So many of the changes that look best are tried out with their true shares."""
TRIAL_SWEEPS = 8
STEP_SWEEPS = 200
STEP_TOLERANCE = 1e-5
"""The search settles loads to this part of the mean: finer changes no decision, and takes longer."""
ABOVE_WEIGHT = 8.0
"""What a rank above the target counts against one below it, where ranks are compared."""


@kernel
def peak_of(load_G: FloatArray) -> float:
    peak: float = load_G[0]
    for load in load_G:
        peak = max(peak, load)
    return peak


@kernel
def excess_of(load: float, target: float) -> float:
    """How far one rank is from the mean: the square, weighted above the target."""
    square = (load - 1.0) * (load - 1.0)
    return ABOVE_WEIGHT * square if load >= target else square


@kernel
def excess(load_G: FloatArray, target: float) -> float:
    """How far the ranks are from the mean, added up."""
    total = 0.0
    for load in load_G:
        total += excess_of(load, target)
    return total


@kernel
def holds(layer: Layer, rank: int, expert: int) -> bool:
    for i in range(layer.start_E1[expert], layer.start_E1[expert + 1]):
        if layer.slots_P[i] // layer.slots_per_rank == rank:
            return True
    return False


@kernel
def repour(layer: Layer, load_G: FloatArray, expert: int, drop_slot: int, add_rank: int) -> None:
    """Takes an expert's tokens off ``load_G`` and puts its heat back as if it had left ``drop_slot``
    and joined ``add_rank`` (-1: neither), all other experts staying as they are."""
    rank_X, heat, n = layer.rank_X, layer.heat_E[expert], 0
    for i in range(layer.start_E1[expert], layer.start_E1[expert + 1]):
        slot = layer.slots_P[i]
        rank = slot // layer.slots_per_rank
        load_G[rank] -= layer.tokens_P[slot]
        if slot != drop_slot and not (layer.balanced and n > 0 and rank_X[n - 1] == rank):
            rank_X[n] = rank
            n += 1
    if add_rank >= 0:
        rank_X[n] = add_rank
        n += 1
    if layer.balanced and n > 1:
        water_fill(load_G, rank_X, n, heat, layer.amount_X)
        for i in range(n):
            load_G[rank_X[i]] += layer.amount_X[i]
    else:
        for i in range(n):
            load_G[rank_X[i]] += heat / n


@kernel
def offer(score_K: FloatArray, change_K4: Int64Array, score: float, p: int, e: int, q: int, f: int) -> None:
    """Keeps the change (slot ``p`` gets ``e``, slot ``q`` gets ``f``) if it is among the best."""
    if score <= score_K[-1]:
        return
    i = len(score_K) - 1
    while i > 0 and score > score_K[i - 1]:
        score_K[i] = score_K[i - 1]
        for j in range(4):
            change_K4[i, j] = change_K4[i - 1, j]
        i -= 1
    score_K[i] = score
    change_K4[i, 0], change_K4[i, 1], change_K4[i, 2], change_K4[i, 3] = p, e, q, f


@kernel
def is_useful(layer: Layer, expert: int, hot: float) -> bool:
    """Whether the expert gives tokens to a hot rank."""
    for i in range(layer.start_E1[expert], layer.start_E1[expert + 1]):
        slot = layer.slots_P[i]
        if layer.tokens_P[slot] > 0 and layer.load_G[slot // layer.slots_per_rank] >= hot:
            return True
    return False


@kernel
def rate_replacements(layer: Layer, target: float, score_K: FloatArray, change_K4: Int64Array) -> None:
    """Offers other experts for each slot that is empty or redundant: those that give tokens to a hot
    rank, and any at all where the slot itself is on one."""
    hot, now = peak_of(layer.load_G) * (1 - HOT), excess(layer.load_G, target)
    useful_E = np.empty(len(layer.heat_E), np.bool_)
    for expert in range(len(useful_E)):
        useful_E[expert] = is_useful(layer, expert, hot)
    without_G, load_G = layer.load_G.copy(), layer.load_G.copy()
    for slot in range(len(layer.slot_expert_P)):
        rank, old = slot // layer.slots_per_rank, layer.slot_expert_P[slot]
        if old >= 0 and layer.start_E1[old + 1] - layer.start_E1[old] < 2:
            continue
        without_G[:] = layer.load_G
        if old >= 0:
            repour(layer, without_G, old, slot, -1)
        on_hot = not layer.balanced and layer.load_G[rank] >= hot
        for expert in range(len(useful_E)):
            if (useful_E[expert] or on_hot) and not holds(layer, rank, expert):
                load_G[:] = without_G
                repour(layer, load_G, expert, -1, rank)
                gain = now - excess(load_G, target)
                offer(score_K, change_K4, gain, slot, expert, -1, -1)


@kernel
def has_one_slot(layer: Layer, expert: int) -> bool:
    return bool(layer.start_E1[expert + 1] - layer.start_E1[expert] == 1)


@kernel
def rate_swap(layer: Layer, target: float, now: float, slot: int, other: int, load_G: FloatArray) -> float:
    """What swapping the experts of two slots takes away from ``now``. ``load_G`` is scratch."""
    rank, to = slot // layer.slots_per_rank, other // layer.slots_per_rank
    expert, swapped = layer.slot_expert_P[slot], layer.slot_expert_P[other]
    if has_one_slot(layer, expert) and has_one_slot(layer, swapped):
        # No share changes: the two ranks trade whole experts, and no other rank feels it.
        difference = layer.tokens_P[slot] - layer.tokens_P[other]
        hot, cold = layer.load_G[rank], layer.load_G[to]
        before = excess_of(hot, target) + excess_of(cold, target)
        return before - excess_of(hot - difference, target) - excess_of(cold + difference, target)
    load_G[:] = layer.load_G
    repour(layer, load_G, expert, slot, to)
    repour(layer, load_G, swapped, other, rank)
    return now - excess(load_G, target)


@kernel
def rate_swaps(layer: Layer, target: float, score_K: FloatArray, change_K4: Int64Array) -> None:
    """Offers to swap each expert of the hottest rank with each of the ranks below the target, at half
    the gain: a swap takes two moves."""
    now, peak = excess(layer.load_G, target), peak_of(layer.load_G)
    scratch_G, rank, size = layer.load_G.copy(), 0, layer.slots_per_rank
    while layer.load_G[rank] < peak:
        rank += 1
    for slot in range(rank * size, (rank + 1) * size):
        expert = layer.slot_expert_P[slot]
        for other in range(len(layer.slot_expert_P) if expert >= 0 else 0):
            swapped, to = layer.slot_expert_P[other], other // size
            if swapped < 0 or layer.load_G[to] >= target:
                continue
            if layer.tokens_P[other] >= layer.tokens_P[slot]:
                continue
            if holds(layer, rank, swapped) or holds(layer, to, expert):
                continue
            gain = rate_swap(layer, target, now, slot, other, scratch_G)
            offer(score_K, change_K4, gain / 2, slot, swapped, other, expert)


@kernel
def change_slots(layer: Layer, change_4: Int64Array, sweeps: int) -> None:
    """Makes the change and settles the loads."""
    for i in (0, 2):
        if change_4[i] >= 0:
            layer.slot_expert_P[change_4[i]] = change_4[i + 1]
            layer.tokens_P[change_4[i]] = 0.0
    list_slots(layer)
    settle(layer, sweeps, STEP_TOLERANCE)


@kernel
def search_layer(layer: Layer, trial: Layer, target: float, steps_KP: Int64Array, peak_K: FloatArray) -> int:
    """Changes slots while the layer is above its target and a change helps. Row ``k`` of ``steps_KP``
    is the placement after ``k`` steps, ``peak_K[k]`` its highest load. Returns the number of rows.
    ``trial`` is scratch: another layer of the same heat."""
    score_K = np.empty(TRIALS if layer.balanced else 1)
    change_K4 = np.empty((len(score_K), 4), np.int64)
    for row in range(len(peak_K)):
        steps_KP[row] = layer.slot_expert_P
        peak_K[row] = peak_of(layer.load_G)
        if peak_K[row] <= target:
            return row + 1
        now = excess(layer.load_G, target)
        score_K[:] = MIN_STEP * now / 2
        change_K4[:] = -1
        rate_replacements(layer, target, score_K, change_K4)
        rate_swaps(layer, target, score_K, change_K4)
        best, best_gain = 0, MIN_STEP * now
        for k in range(len(score_K)):
            if change_K4[k, 0] < 0:
                break
            copy_layer(trial, layer)
            change_slots(trial, change_K4[k], TRIAL_SWEEPS)
            gain = (now - excess(trial.load_G, target)) / (2 if change_K4[k, 2] >= 0 else 1)
            if gain > best_gain:
                best, best_gain = k, gain
        if best_gain <= MIN_STEP * now:
            return row + 1
        change_slots(layer, change_K4[best], STEP_SWEEPS)
    return len(peak_K)
