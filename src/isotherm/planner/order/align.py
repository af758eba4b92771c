"""What stays on its rank stays in its slot."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.jit import kernel


@kernel
def keep_places(held_LP: Int64Array, goal_LP: Int64Array, ranks: int) -> None:
    """Reorders the slots of each rank in ``goal_LP``, in place, so that an expert which its rank holds
    already stays where it is; the others take the slots that are left, in order."""
    size = held_LP.shape[1] // ranks
    rest, kept = np.empty(size, np.int64), np.empty(size, np.bool_)
    for layer in range(len(held_LP)):
        for first in range(0, held_LP.shape[1], size):
            kept[:], n = False, 0
            for slot in range(first, first + size):
                expert, place = goal_LP[layer, slot], 0
                while place < size and (kept[place] or held_LP[layer, first + place] != expert):
                    place += 1
                if place < size:
                    kept[place] = True
                else:
                    rest[n] = expert
                    n += 1
            n = 0
            for place in range(size):
                if kept[place]:
                    goal_LP[layer, first + place] = held_LP[layer, first + place]
                else:
                    goal_LP[layer, first + place] = rest[n]
                    n += 1
