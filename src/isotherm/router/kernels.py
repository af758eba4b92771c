"""Mapping and counting in one pass over a batch, on the CPU."""

from __future__ import annotations

import numpy as np

from isotherm.jit import kernel

# Odd multipliers of Weyl sequences modulo 2^32 (the fraction of the golden ratio, and two primes): the
# rounding offsets of the ranks, and of successive steps, spread evenly over [0, 1).
RANK_STRIDE = 2654435769
STEP_STRIDE = 1640531513
ROW_STRIDE = 2246822519
MASK = 0xFFFFFFFF


def rounding_base(layer: int, step: int, rank: int) -> int:
    """What is added to every expert's rounding offset in this layer, step and rank, below 2^32."""
    return (rank * RANK_STRIDE + step * STEP_STRIDE + layer * ROW_STRIDE) & MASK


@kernel
def map_and_count(
    ids_TK: np.ndarray,
    slots_TK: np.ndarray,
    num_tokens: int,
    num_decode: int,
    base: int,
    offsets_E1: np.ndarray,
    slots_P: np.ndarray,
    ends_P: np.ndarray,
    prefill_E: np.ndarray,
    decode_E: np.ndarray,
    received_P: np.ndarray,
    seen_E: np.ndarray,
    limit_P: np.ndarray,
) -> None:
    """Chooses a replica for each (token, expert) pair, and counts the real ones.

    The ``n`` tokens of an expert in this batch are split by ordinal: replica ``r`` takes the ordinals
    in ``[floor(end[r-1] * n + o), floor(end[r] * n + o))`` with ``o`` in [0, 1) from step, rank, layer and
    expert, so each replica's count is within 1 of its share of ``n``. Negative ids map to -1. Rows from
    ``num_tokens`` on are padding: mapped, not counted.

    ``seen_E`` and ``limit_P`` are scratch.
    """
    tokens, top_k = ids_TK.shape
    seen_E[:] = 0
    for token in range(tokens):
        for choice in range(top_k):
            expert = ids_TK[token, choice]
            if expert >= 0:
                seen_E[expert] += 1
        if token == num_decode - 1:
            decode_E += seen_E
            prefill_E -= seen_E
        if token == num_tokens - 1:
            prefill_E += seen_E
    for expert in range(len(seen_E)):
        if seen_E[expert] > 0:
            offset = (base + expert * 2654435769) & 0xFFFFFFFF
            for row in range(offsets_E1[expert], offsets_E1[expert + 1]):
                limit_P[row] = (ends_P[row] * seen_E[expert] + offset) >> 32
        # From here on: the row of the replica that takes this expert's next token.
        seen_E[expert] = 0
    for token in range(tokens):
        real = token < num_tokens
        for choice in range(top_k):
            expert = ids_TK[token, choice]
            if expert < 0:
                slots_TK[token, choice] = -1
                continue
            row = offsets_E1[expert]
            ordinal = seen_E[expert]
            while limit_P[row] <= ordinal:
                row += 1
            seen_E[expert] = ordinal + 1
            slot = slots_P[row]
            slots_TK[token, choice] = slot
            if real:
                received_P[slot] += 1
