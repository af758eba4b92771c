"""Rounding offsets: what spreads the odd token of each share evenly."""

from __future__ import annotations

# Odd multipliers of Weyl sequences modulo 2^32 (the fraction of the golden ratio, and three primes): the
# rounding offsets of the ranks, and of successive steps, spread evenly over [0, 1).
RANK_STRIDE = 2654435769
STEP_STRIDE = 1640531513
ROW_STRIDE = 2246822519
MICRO_BATCH_STRIDE = 3266489917
MASK = 0xFFFFFFFF


def rounding_base(layer: int, step: int, rank: int, micro_batch: int = 0) -> int:
    """What is added to every expert's rounding offset in this layer, step, rank and micro-batch, below
    2^32."""
    return (
        rank * RANK_STRIDE + step * STEP_STRIDE + layer * ROW_STRIDE + micro_batch * MICRO_BATCH_STRIDE
    ) & MASK
