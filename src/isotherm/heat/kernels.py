"""Counting on the CPU, where no mapping goes with it. Called by address (`isotherm.jit`)."""

from __future__ import annotations

import numpy as np

from isotherm.counting import count_pairs
from isotherm.jit import int32_at, int64_at, kernel


@kernel
def count_int64(
    prefill_at: int,
    decode_at: int,
    experts: int,
    ids_at: int,
    tokens: int,
    top_k: int,
    first_token: int,
    num_tokens: int,
    num_decode: int,
) -> None:
    """Adds each int64 id of the rows ``first_token <= row < first_token + num_tokens`` to its expert's count
    in the int32 rows at ``prefill_at`` and ``decode_at``. The first ``num_decode`` of these are decode
    tokens. Ids that name no expert count nothing."""
    first, middle, stop = _borders(tokens, first_token, num_tokens, num_decode)
    ids = int64_at(ids_at, tokens * top_k)
    count_pairs(ids, first * top_k, middle * top_k, int32_at(decode_at, experts))
    count_pairs(ids, middle * top_k, stop * top_k, int32_at(prefill_at, experts))


@kernel
def count_int32(
    prefill_at: int,
    decode_at: int,
    experts: int,
    ids_at: int,
    tokens: int,
    top_k: int,
    first_token: int,
    num_tokens: int,
    num_decode: int,
) -> None:
    """As `count_int64`, for int32 ids."""
    first, middle, stop = _borders(tokens, first_token, num_tokens, num_decode)
    ids = int32_at(ids_at, tokens * top_k)
    count_pairs(ids, first * top_k, middle * top_k, int32_at(decode_at, experts))
    count_pairs(ids, middle * top_k, stop * top_k, int32_at(prefill_at, experts))


@kernel
def add_int64(sums_at: int, counts_at: int, length: int) -> None:
    """Adds int64 counts to int32 sums, modulo 2^32."""
    sums, counts = int32_at(sums_at, length), int64_at(counts_at, length)
    for index in range(length):
        sums[index] += np.int32(counts[index])


@kernel
def add_int32(sums_at: int, counts_at: int, length: int) -> None:
    """As `add_int64`, for int32 counts."""
    sums, counts = int32_at(sums_at, length), int32_at(counts_at, length)
    for index in range(length):
        sums[index] += counts[index]


@kernel
def mark_grown(
    heat_at: int,
    rows: int,
    row_words: int,
    kinds: int,
    cells: int,
    now_at: int,
    seen_at: int,
    active_at: int,
) -> None:
    """Adds one to each of the ``cells`` int32 counts at ``active_at`` whose total over ``rows`` rows of
    ``kinds`` kinds of counts is not what ``seen_at`` says, and notes it there. ``now_at`` is scratch."""
    heat, now = int32_at(heat_at, rows * row_words), int32_at(now_at, cells)
    seen, active = int32_at(seen_at, cells), int32_at(active_at, cells)
    now[:] = 0
    # One plane after the other: each is a loop over neighbours, of which the CPU does several at once.
    for row in range(rows):
        for kind in range(kinds):
            first = row * row_words + kind * cells
            plane = heat[first : first + cells]
            for cell in range(cells):
                now[cell] += plane[cell]
    for cell in range(cells):
        active[cell] += np.int32(now[cell] != seen[cell])
        seen[cell] = now[cell]


@kernel
def _borders(tokens: int, first_token: int, num_tokens: int, num_decode: int) -> tuple[int, int, int]:
    """The rows where decode tokens begin, where they end, and where the real ones do, inside the batch."""
    first = min(max(first_token, 0), tokens)
    stop = min(max(first + num_tokens, first), tokens)
    return first, min(max(first + num_decode, first), stop), stop
