"""Which one replica of each expert works, where splitting an expert does not split what it costs."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel


@kernel
def choose_replicas(
    weight_LE: FloatArray, slot_expert_LP: Int64Array, ranks: int, shares_LP: FloatArray
) -> None:
    """Gives each expert's whole share to one of its slots, so that the heaviest rank carries little: first
    those that have one slot alone, then the heaviest first to the lightest rank (Graham 1969), then from the
    heaviest rank to a lighter one while that helps.
    """
    slots = slot_expert_LP.shape[1]
    for row in range(len(weight_LE)):
        chosen_E = np.full(weight_LE.shape[1], -1, np.int64)
        load_G = np.zeros(ranks)
        key_E = -weight_LE[row]
        for expert in range(weight_LE.shape[1]):
            if has_no_choice(expert, slot_expert_LP[row]):
                key_E[expert] = -np.inf
        for each in np.argsort(key_E, kind="mergesort"):
            expert = int(each)
            slot = _lightest(expert, slot_expert_LP[row], load_G, slots // ranks)
            chosen_E[expert] = slot
            load_G[slot // (slots // ranks)] += weight_LE[row, expert]
        while _relieve(weight_LE[row], slot_expert_LP[row], load_G, chosen_E):
            pass
        shares_LP[row] = 0.0
        for each in chosen_E:
            shares_LP[row, each] = 1.0


@kernel
def has_no_choice(expert: int, slot_expert_P: Int64Array) -> bool:
    n = 0
    for slot in range(len(slot_expert_P)):
        n += slot_expert_P[slot] == expert
    return n == 1


@kernel
def _lightest(expert: int, slot_expert_P: Int64Array, load_G: FloatArray, slots_per_rank: int) -> int:
    """The expert's slot on the lightest rank, the first of equals."""
    best = -1
    for slot in range(len(slot_expert_P)):
        if slot_expert_P[slot] == expert and (
            best < 0 or load_G[slot // slots_per_rank] < load_G[best // slots_per_rank]
        ):
            best = slot
    return best


@kernel
def _relieve(
    weight_E: FloatArray, slot_expert_P: Int64Array, load_G: FloatArray, chosen_E: Int64Array
) -> bool:
    """Takes from the heaviest rank the expert that lowers it most without making another as heavy, where that
    needs it with one more expert going on from the rank that it goes to."""
    size, hottest = len(slot_expert_P) // len(load_G), int(load_G.argmax())
    best_slot, best_next, lowest = -1, -1, load_G[hottest] * (1 - 1e-9)
    for slot in range(len(slot_expert_P)):
        expert, rank = slot_expert_P[slot], slot // size
        if expert < 0 or rank == hottest or chosen_E[expert] // size != hottest:
            continue
        less, more = load_G[hottest] - weight_E[expert], load_G[rank] + weight_E[expert]
        if max(less, more) < lowest:
            best_slot, best_next, lowest = slot, -1, max(less, more)
        for other in range(len(slot_expert_P)):
            passed, to = slot_expert_P[other], other // size
            if passed < 0 or to == rank or chosen_E[passed] // size != rank:
                continue
            there = (less if to == hottest else load_G[to]) + weight_E[passed]
            peak = max(there, more - weight_E[passed])
            peak = peak if to == hottest else max(peak, less)
            if peak < lowest:
                best_slot, best_next, lowest = slot, other, peak
    if best_slot < 0:
        return False
    for slot in (best_slot, best_next):
        if slot >= 0:
            moved = slot_expert_P[slot]
            load_G[chosen_E[moved] // size] -= weight_E[moved]
            load_G[slot // size] += weight_E[moved]
            chosen_E[moved] = slot
    return True
