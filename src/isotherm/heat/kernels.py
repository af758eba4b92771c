"""Counting ids on the CPU, where no mapping goes with it."""

from __future__ import annotations

import numpy as np

from isotherm.jit import kernel


@kernel
def count_ids(
    ids_TK: np.ndarray, first_token: int, num_tokens: int, num_decode: int, heat_KE: np.ndarray
) -> None:
    """Adds each id of the rows ``first_token <= row < first_token + num_tokens`` to its expert's count, in
    place. The first ``num_decode`` of these are decode tokens. Ids that name no expert count nothing.
    """
    tokens, top_k = ids_TK.shape
    experts = heat_KE.shape[1]
    for token in range(max(first_token, 0), min(first_token + num_tokens, tokens)):
        kind = 1 if token < first_token + num_decode else 0
        for choice in range(top_k):
            expert = ids_TK[token, choice]
            if expert >= 0 and expert < experts:
                heat_KE[kind, expert] += 1
