"""Counting ids on the CPU, where no mapping goes with it."""

from __future__ import annotations

import numpy as np

from isotherm.jit import kernel


@kernel
def count_ids(
    ids_TK: np.ndarray, num_tokens: int, num_decode: int, prefill_E: np.ndarray, decode_E: np.ndarray
) -> None:
    """Adds each id of the first ``num_tokens`` rows to its expert's count, in place.

    The first ``num_decode`` rows are decode tokens. Negative ids count nothing.
    """
    for token in range(num_tokens):
        counts_E = decode_E if token < num_decode else prefill_E
        for choice in range(ids_TK.shape[1]):
            expert = ids_TK[token, choice]
            if expert >= 0:
                counts_E[expert] += 1


def warm_up() -> None:
    """Compiles the kernel, or loads it from numba's cache: before serving."""
    for dtype in (np.int64, np.int32):
        counts_E = np.zeros((2, 1), np.int32)
        count_ids(np.zeros((1, 1), dtype), 0, 0, *counts_E)
