"""The least of many that change one at a time: a binary heap of numbers under their keys."""

from __future__ import annotations

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel


@kernel
def heap_up(heap_N: Int64Array, size: int, key_N: FloatArray) -> None:
    """Makes the first ``size`` of ``heap_N`` a heap: the first has the least key (the least of equals)."""
    for i in range(size // 2 - 1, -1, -1):
        sink(heap_N, size, i, key_N)


@kernel
def sink(heap_N: Int64Array, size: int, place: int, key_N: FloatArray) -> None:
    """Restores the heap after the key of the one at ``place`` grew."""
    moved = heap_N[place]
    while 2 * place + 1 < size:
        child = 2 * place + 1
        if child + 1 < size and comes_first(heap_N[child + 1], heap_N[child], key_N):
            child += 1
        if not comes_first(heap_N[child], moved, key_N):
            break
        heap_N[place] = heap_N[child]
        place = child
    heap_N[place] = moved


@kernel
def comes_first(one: int, other: int, key_N: FloatArray) -> bool:
    return bool(key_N[one] < key_N[other] or (key_N[one] == key_N[other] and one < other))
