"""What a change of one or two slots of a layer would gain, told from the ranks it touches.

The excess of a layer is how far its ranks are from the mean. Ties go to what was found first, in ascending
order of slots and experts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import BoolArray, FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.layer import Layer, has_one_slot, holds
from isotherm.planner.load_kernels import water_fill

HOT = 1e-3
"""Ranks within this of the highest load are hot: lowering the peak starts from their experts."""
HEAVIEST = 1
"""So many experts of each hot rank, those that give it most, are tried elsewhere."""
PLACES = 10
"""So many slots, of those that promise most, are rated with every expert that could help."""


class Aim(NamedTuple):
    """What the search is after: no rank above ``target``. A rank above it counts ``weight`` times."""

    target: float
    weight: float


@kernel
def peak_of(load_G: FloatArray) -> float:
    peak: float = load_G[0]
    for load in load_G:
        peak = max(peak, load)
    return peak


@kernel
def excess_of(load: float, aim: Aim) -> float:
    """How far one rank is from the mean: the square, and more of it above the target."""
    square = (load - 1.0) * (load - 1.0)
    return aim.weight * square if load >= aim.target else square


@kernel
def excess(load_G: FloatArray, aim: Aim) -> float:
    """How far the ranks are from the mean, added up."""
    total = 0.0
    for load in load_G:
        total += excess_of(load, aim)
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
def take_back(load_G: FloatArray, base_G: FloatArray, rank_X: Int64Array, n: int, aim: Aim) -> float:
    """Makes ``load_G`` what ``base_G`` is on ``rank_X[:n]`` again. Returns how much lower its excess was."""
    gain = 0.0
    for i in range(n):
        rank = rank_X[i]
        gain += excess_of(base_G[rank], aim) - excess_of(load_G[rank], aim)
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
def useful_experts(layer: Layer) -> BoolArray:
    """Bool [experts]: among those that give most tokens to a hot rank. With balanced shares one more replica
    takes off the rank at most what the expert gives it, so experts that give less gain no more."""
    useful_E = np.zeros(len(layer.heat_E), np.bool_)
    hot, size = peak_of(layer.load_G) * (1 - HOT), layer.slots_per_rank
    for rank in range(len(layer.load_G)):
        if layer.load_G[rank] < hot:
            continue
        for _ in range(HEAVIEST if layer.balanced else size):
            best, best_tokens = -1, 0.0
            for slot in range(rank * size, (rank + 1) * size):
                if layer.tokens_P[slot] > best_tokens and not useful_E[layer.slot_expert_P[slot]]:
                    best, best_tokens = layer.slot_expert_P[slot], layer.tokens_P[slot]
            if best >= 0:
                useful_E[best] = True
    return useful_E


@kernel
def promising_slots(layer: Layer, aim: Aim) -> Int64Array:
    """The empty or redundant slots whose rank could take most from one at the peak, less what giving up
    the slot's expert costs."""
    peak = peak_of(layer.load_G)
    places = PLACES if layer.balanced else len(layer.slot_expert_P)
    score_K, change_K4 = np.full(places, -np.inf), np.full((places, 4), -1)
    load_G = layer.load_G.copy()
    for slot in range(len(layer.slot_expert_P)):
        rank, old = layer.rank_P[slot], layer.slot_expert_P[slot]
        if old >= 0 and has_one_slot(layer, old):
            continue
        n = repour(layer, load_G, old, slot, -1) if old >= 0 else 0
        layer.rank_X[n] = rank
        both = excess_of(peak, aim) + excess_of(load_G[rank], aim)
        score = both - 2 * excess_of((peak + load_G[rank]) / 2, aim)
        score += take_back(load_G, layer.load_G, layer.rank_X, n + 1, aim)
        offer(score_K, change_K4, score, slot, old, -1, -1)
    return change_K4[:, 0]


@kernel
def rate_replacements(layer: Layer, aim: Aim, score_K: FloatArray, change_K4: Int64Array) -> None:
    """Offers other experts for slots that are empty or redundant: those that give tokens to a hot rank,
    and, with even shares, any at all where the slot itself is on one."""
    hot, now = peak_of(layer.load_G) * (1 - HOT), excess(layer.load_G, aim)
    useful_E = useful_experts(layer)
    without_G, load_G = layer.load_G.copy(), layer.load_G.copy()
    for slot in promising_slots(layer, aim):
        if slot < 0:
            break
        rank, old = layer.rank_P[slot], layer.slot_expert_P[slot]
        without_G[:] = layer.load_G
        if old >= 0:
            repour(layer, without_G, old, slot, -1)
        kept = now - excess(without_G, aim)
        load_G[:] = without_G
        on_hot = not layer.balanced and layer.load_G[rank] >= hot
        for expert in range(len(useful_E)):
            if (useful_E[expert] or on_hot) and not holds(layer, rank, expert):
                n = repour(layer, load_G, expert, -1, rank)
                gain = kept + take_back(load_G, without_G, layer.rank_X, n, aim)
                offer(score_K, change_K4, gain, slot, expert, -1, -1)


@kernel
def hottest_rank(load_G: FloatArray) -> int:
    rank = 0
    for other in range(len(load_G)):
        if load_G[other] > load_G[rank]:
            rank = other
    return rank


@kernel
def rate_swaps(layer: Layer, aim: Aim, score_K: FloatArray, change_K4: Int64Array) -> None:
    """Offers to swap each expert of the hottest rank with each of the ranks below the target, at half
    the gain: a swap takes two moves. Only experts of one slot: no share changes, the two ranks trade whole
    experts, and no other rank feels it."""
    rank, size = hottest_rank(layer.load_G), layer.slots_per_rank
    hot = layer.load_G[rank]
    for other in range(len(layer.slot_expert_P)):
        swapped, cold = layer.slot_expert_P[other], layer.load_G[layer.rank_P[other]]
        if swapped < 0 or cold >= aim.target or not has_one_slot(layer, swapped):
            continue
        before = excess_of(hot, aim) + excess_of(cold, aim)
        for slot in range(rank * size, (rank + 1) * size):
            expert, moved = layer.slot_expert_P[slot], layer.tokens_P[slot] - layer.tokens_P[other]
            if moved > 0.0 and has_one_slot(layer, expert):
                gain = before - excess_of(hot - moved, aim) - excess_of(cold + moved, aim)
                offer(score_K, change_K4, gain / 2, slot, swapped, other, expert)


@kernel
def rate_shared_swaps(layer: Layer, aim: Aim, score_K: FloatArray, change_K4: Int64Array) -> None:
    """As `rate_swaps`, where at least one of the two experts has several slots."""
    rank, size, now = hottest_rank(layer.load_G), layer.slots_per_rank, excess(layer.load_G, aim)
    load_G = layer.load_G.copy()
    for other in range(len(layer.slot_expert_P)):
        swapped, to = layer.slot_expert_P[other], layer.rank_P[other]
        if swapped < 0 or layer.load_G[to] >= aim.target or holds(layer, rank, swapped):
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
            gain = now - excess(load_G, aim)
            offer(score_K, change_K4, gain / 2, slot, swapped, other, expert)
