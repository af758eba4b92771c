"""Ranks that trade nodes: what a rank holds stays together, so that loads stay as they are."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel

SWEEPS = 16
"""At most so often is every rank looked at."""
LEAST_GAIN = 1e-9
"""Less than this of what a rank carries is rounding."""


@kernel
def trade_ranks(slot_expert_P: Int64Array, source_NE: FloatArray, ranks: int) -> None:
    """Trades, in place, all slots of two ranks of different nodes, while more pairs could then stay near: an
    expert on a node keeps that node's pairs of it."""
    nodes, experts = source_NE.shape
    size, per_node = len(slot_expert_P) // ranks, len(slot_expert_P) // nodes
    held_NE = np.zeros((nodes, experts), np.int64)
    for slot in range(len(slot_expert_P)):
        if slot_expert_P[slot] >= 0:
            held_NE[slot // per_node, slot_expert_P[slot]] += 1
    least = LEAST_GAIN * source_NE.sum() / ranks
    for _ in range(SWEEPS):
        traded = False
        for rank in range(ranks):
            best, best_rank = least, -1
            for other in range(ranks):
                if other * nodes // ranks != rank * nodes // ranks:
                    gain = trade_gain(slot_expert_P, source_NE, held_NE, size, rank, other)
                    gain += trade_gain(slot_expert_P, source_NE, held_NE, size, other, rank)
                    if gain > best:
                        best, best_rank = gain, other
            if best_rank >= 0:
                make_trade(slot_expert_P, held_NE, size, rank, best_rank)
                traded = True
        if not traded:
            return


@kernel
def trade_gain(
    slot_expert_P: Int64Array, source_NE: FloatArray, held_NE: Int64Array, size: int, rank: int, other: int
) -> float:
    """Pairs that come to be near where what ``rank`` holds, and ``other`` does not, goes to its node."""
    per_node, gain = len(slot_expert_P) // len(source_NE), 0.0
    a, b = rank * size // per_node, other * size // per_node
    for slot in range(rank * size, (rank + 1) * size):
        expert, is_shared = slot_expert_P[slot], False
        for place in range(other * size, (other + 1) * size):
            is_shared = is_shared or slot_expert_P[place] == expert
        if expert >= 0 and not is_shared:
            gain -= source_NE[a, expert] if held_NE[a, expert] == 1 else 0.0
            gain += source_NE[b, expert] if held_NE[b, expert] == 0 else 0.0
    return gain


@kernel
def make_trade(slot_expert_P: Int64Array, held_NE: Int64Array, size: int, rank: int, other: int) -> None:
    per_node = len(slot_expert_P) // len(held_NE)
    for i in range(size):
        p, q = rank * size + i, other * size + i
        for slot, to in ((p, q), (q, p)):
            if slot_expert_P[slot] >= 0:
                held_NE[slot // per_node, slot_expert_P[slot]] -= 1
                held_NE[to // per_node, slot_expert_P[slot]] += 1
        slot_expert_P[p], slot_expert_P[q] = slot_expert_P[q], slot_expert_P[p]
