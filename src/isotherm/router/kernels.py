"""Mapping and counting in one pass over a batch, on the CPU."""

from __future__ import annotations

import numpy as np

from isotherm.jit import kernel


@kernel
def map_and_count(
    ids_TK: np.ndarray,
    slots_TK: np.ndarray,
    first_token: int,
    num_tokens: int,
    num_decode: int,
    base: int,
    offsets_E1: np.ndarray,
    slots_P: np.ndarray,
    ends_P: np.ndarray,
    heat_KE: np.ndarray,
    received_P: np.ndarray,
    seen_E: np.ndarray,
    limit_P: np.ndarray,
) -> None:
    """Chooses a replica for each (token, expert) pair, and counts the real ones.

    The ``n`` tokens of an expert in this batch are split by ordinal: replica ``r`` takes the ordinals
    in ``[floor(end[r-1] * n + o), floor(end[r] * n + o))`` with ``o`` in [0, 1) from step, rank, layer and
    expert, so each replica's count is within 1 of its share of ``n``. Ids that name no expert map to -1.
    Rows outside ``first_token <= row < first_token + num_tokens`` are not this rank's, or padding: mapped,
    not counted.

    ``seen_E`` and ``limit_P`` are scratch.
    """
    tokens, top_k = ids_TK.shape
    experts = len(seen_E)
    seen_E[:] = 0
    for token in range(tokens):
        row = token - first_token
        real = row >= 0 and row < num_tokens
        kind = 1 if row < num_decode else 0
        for choice in range(top_k):
            expert = ids_TK[token, choice]
            if expert >= 0 and expert < experts:
                seen_E[expert] += 1
                if real:
                    heat_KE[kind, expert] += 1
    for expert in range(len(seen_E)):
        if seen_E[expert] > 0:
            offset = (base + expert * 2654435769) & 0xFFFFFFFF
            for row in range(offsets_E1[expert], offsets_E1[expert + 1]):
                limit_P[row] = (ends_P[row] * seen_E[expert] + offset) >> 32
        # From here on: the row of the replica that takes this expert's next token.
        seen_E[expert] = 0
    for token in range(tokens):
        real = first_token <= token and token < first_token + num_tokens
        for choice in range(top_k):
            expert = ids_TK[token, choice]
            if expert < 0 or expert >= experts:
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
