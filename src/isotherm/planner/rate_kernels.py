"""What a change of one or two slots of a layer would gain, told from the ranks it touches.

The excess of a layer is how far its ranks are from the mean. Ties go to what was found first, in ascending
order of slots and experts.
"""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.layer import Layer, has_one_slot, holds
from isotherm.planner.load_kernels import water_fill

HOT = 1e-3
"""Ranks within this of the highest load are hot: lowering the peak starts from their experts."""
ABOVE_WEIGHT = 8.0
"""What a rank above the target counts against one below it, where ranks are compared."""
PLACES = 12
"""So many slots, of those that promise most, are rated with every expert that could help."""


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
def repour(layer: Layer, load_G: FloatArray, expert: int, drop_slot: int, add_rank: int) -> int:
    """Takes an expert's tokens off ``load_G`` and puts its heat back as if it had left ``drop_slot``
    and joined ``add_rank`` (-1: neither), all other experts staying as they are. Returns on how many
    ranks, ``rank_X``."""
    rank_X, heat, n = layer.rank_X, layer.heat_E[expert], 0
    for i in range(layer.start_E1[expert], layer.start_E1[expert + 1]):
        slot = layer.slots_P[i]
        rank = layer.rank_P[slot]
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
    return n


@kernel
def take_back(load_G: FloatArray, base_G: FloatArray, rank_X: Int64Array, n: int, target: float) -> float:
    """Makes ``load_G`` what ``base_G`` is on ``rank_X[:n]`` again. Returns how much lower its excess was."""
    gain = 0.0
    for i in range(n):
        rank = rank_X[i]
        gain += excess_of(base_G[rank], target) - excess_of(load_G[rank], target)
        load_G[rank] = base_G[rank]
    return gain


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
        if layer.tokens_P[slot] > 0 and layer.load_G[layer.rank_P[slot]] >= hot:
            return True
    return False


@kernel
def promising_slots(layer: Layer, target: float) -> Int64Array:
    """The empty or redundant slots whose rank could take most from one at the peak, less what giving up
    the slot's expert costs."""
    now, peak = excess(layer.load_G, target), peak_of(layer.load_G)
    places = PLACES if layer.balanced else len(layer.slot_expert_P)
    score_K, change_K4 = np.full(places, -np.inf), np.full((places, 4), -1)
    load_G = layer.load_G.copy()
    for slot in range(len(layer.slot_expert_P)):
        rank, old = layer.rank_P[slot], layer.slot_expert_P[slot]
        if old >= 0 and has_one_slot(layer, old):
            continue
        load_G[:] = layer.load_G
        if old >= 0:
            repour(layer, load_G, old, slot, -1)
        both = excess_of(peak, target) + excess_of(load_G[rank], target)
        level = (peak + load_G[rank]) / 2
        score = now - excess(load_G, target) + both - 2 * excess_of(level, target)
        offer(score_K, change_K4, score, slot, old, -1, -1)
    return change_K4[:, 0]


@kernel
def rate_replacements(layer: Layer, target: float, score_K: FloatArray, change_K4: Int64Array) -> None:
    """Offers other experts for slots that are empty or redundant: those that give tokens to a hot rank,
    and, with even shares, any at all where the slot itself is on one."""
    hot, now = peak_of(layer.load_G) * (1 - HOT), excess(layer.load_G, target)
    useful_E = np.empty(len(layer.heat_E), np.bool_)
    for expert in range(len(useful_E)):
        useful_E[expert] = is_useful(layer, expert, hot)
    without_G, load_G = layer.load_G.copy(), layer.load_G.copy()
    for slot in promising_slots(layer, target):
        if slot < 0:
            break
        rank, old = layer.rank_P[slot], layer.slot_expert_P[slot]
        without_G[:] = layer.load_G
        if old >= 0:
            repour(layer, without_G, old, slot, -1)
        kept = now - excess(without_G, target)
        load_G[:] = without_G
        on_hot = not layer.balanced and layer.load_G[rank] >= hot
        for expert in range(len(useful_E)):
            if (useful_E[expert] or on_hot) and not holds(layer, rank, expert):
                n = repour(layer, load_G, expert, -1, rank)
                gain = kept + take_back(load_G, without_G, layer.rank_X, n, target)
                offer(score_K, change_K4, gain, slot, expert, -1, -1)


@kernel
def hottest_rank(load_G: FloatArray) -> int:
    rank = 0
    for other in range(len(load_G)):
        if load_G[other] > load_G[rank]:
            rank = other
    return rank


@kernel
def rate_swaps(layer: Layer, target: float, score_K: FloatArray, change_K4: Int64Array) -> None:
    """Offers to swap each expert of the hottest rank with each of the ranks below the target, at half
    the gain: a swap takes two moves. Only experts of one slot: no share changes, the two ranks trade whole
    experts, and no other rank feels it."""
    rank, size = hottest_rank(layer.load_G), layer.slots_per_rank
    hot = layer.load_G[rank]
    for other in range(len(layer.slot_expert_P)):
        swapped, cold = layer.slot_expert_P[other], layer.load_G[layer.rank_P[other]]
        if swapped < 0 or cold >= target or not has_one_slot(layer, swapped):
            continue
        before = excess_of(hot, target) + excess_of(cold, target)
        for slot in range(rank * size, (rank + 1) * size):
            expert, moved = layer.slot_expert_P[slot], layer.tokens_P[slot] - layer.tokens_P[other]
            if moved > 0.0 and has_one_slot(layer, expert):
                gain = before - excess_of(hot - moved, target) - excess_of(cold + moved, target)
                offer(score_K, change_K4, gain / 2, slot, swapped, other, expert)


@kernel
def rate_shared_swaps(layer: Layer, target: float, score_K: FloatArray, change_K4: Int64Array) -> None:
    """As `rate_swaps`, where at least one of the two experts has several slots."""
    rank, size, now = hottest_rank(layer.load_G), layer.slots_per_rank, excess(layer.load_G, target)
    load_G = layer.load_G.copy()
    for other in range(len(layer.slot_expert_P)):
        swapped, to = layer.slot_expert_P[other], layer.rank_P[other]
        if swapped < 0 or layer.load_G[to] >= target or holds(layer, rank, swapped):
            continue
        for slot in range(rank * size, (rank + 1) * size):
            expert = layer.slot_expert_P[slot]
            if layer.tokens_P[slot] <= layer.tokens_P[other] or holds(layer, to, expert):
                continue
            if has_one_slot(layer, expert) and has_one_slot(layer, swapped):
                continue
            load_G[:] = layer.load_G
            repour(layer, load_G, expert, slot, to)
            repour(layer, load_G, swapped, other, rank)
            gain = now - excess(load_G, target)
            offer(score_K, change_K4, gain / 2, slot, swapped, other, expert)
