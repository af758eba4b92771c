"""The inner loop of every count on the CPU."""

from __future__ import annotations

import numpy as np

from isotherm.jit import kernel, likely

# Unsigned like the index they are added to, which is then used as it is: a signed one might count from
# the end, and that is looked at for each element.
ONE_MORE, TWO_MORE, THREE_MORE = np.uint64(1), np.uint64(2), np.uint64(3)


@kernel
def count_pairs(ids: np.ndarray, start: int, stop: int, counts_E: np.ndarray) -> None:
    """Adds the ids [start, stop) to the counts of their experts. Ids that name no expert count nothing."""
    # Unsigned, so that one comparison finds what is negative or too large; four pairs for one branch.
    experts = np.uint64(len(counts_E))
    groups = (stop - start) // 4
    for group in range(groups):
        pair = np.uint64(start + 4 * group)
        a, b = np.uint64(ids[pair]), np.uint64(ids[pair + ONE_MORE])
        c, d = np.uint64(ids[pair + TWO_MORE]), np.uint64(ids[pair + THREE_MORE])
        if likely((a < experts) & (b < experts) & (c < experts) & (d < experts)):
            counts_E[a] += np.int32(1)
            counts_E[b] += np.int32(1)
            counts_E[c] += np.int32(1)
            counts_E[d] += np.int32(1)
        else:
            _count_each(ids, start + 4 * group, start + 4 * group + 4, counts_E)
    _count_each(ids, start + 4 * groups, stop, counts_E)


@kernel
def _count_each(ids: np.ndarray, start: int, stop: int, counts_E: np.ndarray) -> None:
    for pair in range(start, stop):
        expert = np.uint64(ids[pair])
        if expert < np.uint64(len(counts_E)):
            counts_E[expert] += np.int32(1)
