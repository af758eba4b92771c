"""Which one replica of each expert works, where splitting an expert does not split what it costs."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel


@kernel
def choose_replicas(
    weight_LE: FloatArray, slot_expert_LP: Int64Array, ranks: int, shares_LP: FloatArray
) -> None:
    """Gives each expert's whole share to one of its slots, so that the heaviest rank carries little: heaviest
    first to the lightest rank (Graham 1969), then from the heaviest rank to a lighter one while that helps.
    """
    slots = slot_expert_LP.shape[1]
    for row in range(len(weight_LE)):
        chosen_E = np.full(weight_LE.shape[1], -1, np.int64)
        load_G = np.zeros(ranks)
        for each in np.argsort(-weight_LE[row], kind="mergesort"):
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
    """Takes from the heaviest rank the expert that lowers it most without making another as heavy."""
    slots_per_rank = len(slot_expert_P) // len(load_G)
    hottest = int(load_G.argmax())
    best_slot, lowest = -1, load_G[hottest] * (1 - 1e-9)
    for slot in range(len(slot_expert_P)):
        expert, rank = slot_expert_P[slot], slot // slots_per_rank
        if expert < 0 or rank == hottest or chosen_E[expert] // slots_per_rank != hottest:
            continue
        peak = max(load_G[hottest] - weight_E[expert], load_G[rank] + weight_E[expert])
        if peak < lowest:
            best_slot, lowest = slot, peak
    if best_slot < 0:
        return False
    moved = slot_expert_P[best_slot]
    load_G[hottest] -= weight_E[moved]
    load_G[best_slot // slots_per_rank] += weight_E[moved]
    chosen_E[moved] = best_slot
    return True
