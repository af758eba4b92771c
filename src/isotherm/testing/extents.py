"""The exact bytes that a tensor touches, as ranges, whatever its strides."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from isotherm.arrays import Int64Array


@dataclass(frozen=True, eq=False)
class Extent:
    """Half-open byte ranges, sorted, apart from each other."""

    starts: Int64Array
    stops: Int64Array

    @classmethod
    def of(cls, start: int, stop: int) -> Extent:
        """One range; none where ``stop`` is not behind ``start``."""
        if stop <= start:
            return NOTHING
        return cls(np.array([start], np.int64), np.array([stop], np.int64))

    @classmethod
    def of_tensor(cls, tensor: torch.Tensor, origin: int = 0) -> Extent:
        """The bytes of ``tensor``, counted from ``origin`` for element 0 of its storage."""
        itemsize = tensor.element_size()
        start = origin + int(tensor.storage_offset()) * itemsize
        return of_strides(start, tensor.shape, tensor.stride(), itemsize)

    @classmethod
    def union(cls, extents: Iterable[Extent]) -> Extent:
        """Every byte of any of them."""
        parts = [extent for extent in extents if len(extent.starts)]
        if len(parts) <= 1:
            return parts[0] if parts else NOTHING
        return _merged(
            np.concatenate([part.starts for part in parts]), np.concatenate([part.stops for part in parts])
        )

    def overlaps(self, other: Extent) -> bool:
        """Whether a byte belongs to both."""
        if not len(self.starts) or not len(other.starts):
            return False
        if self.starts[0] >= other.stops[-1] or other.starts[0] >= self.stops[-1]:
            return False
        if len(self.starts) == len(other.starts) == 1:
            return True
        # The first range of ours that ends behind where theirs begins must begin before theirs ends.
        first = np.searchsorted(self.stops, other.starts, side="right")
        inside = first < len(self.starts)
        return bool((self.starts[first[inside]] < other.stops[inside]).any())

    def covers(self, other: Extent) -> bool:
        """Whether every byte of ``other`` is one of these."""
        if not len(other.starts):
            return True
        index = np.searchsorted(self.starts, other.starts, side="right") - 1
        return bool((index >= 0).all() and (self.stops[index] >= other.stops).all())


NOTHING = Extent(np.zeros(0, np.int64), np.zeros(0, np.int64))


def of_strides(start: int, shape: Iterable[int], strides: Iterable[int], itemsize: int) -> Extent:
    """The bytes of elements of ``itemsize`` at ``strides`` (in elements, none negative)."""
    sizes = list(shape)
    if 0 in sizes:
        return NOTHING
    dims = sorted((stride * itemsize, size) for size, stride in zip(sizes, strides) if size > 1 and stride)
    run = itemsize
    while dims and dims[0][0] == run:
        run *= dims.pop(0)[1]
    starts = np.array([start], np.int64)
    for stride, size in reversed(dims):
        starts = np.add.outer(starts, np.arange(size, dtype=np.int64) * stride).ravel()
    return _merged(starts, starts + run)


def _merged(starts: Int64Array, stops: Int64Array) -> Extent:
    """Sorted, and joined where ranges touch or overlap."""
    if len(starts) == 1:
        return Extent(starts, stops)
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(stops[order])
    begins = np.concatenate(([True], starts[1:] > reach[:-1]))
    ends = np.concatenate((begins[1:], [True]))
    return Extent(starts[begins], reach[ends])
