"""Memory of the simulated device, and a caching allocator that means harm.

What is freed goes back to the pool of the stream it was made on and is at once somebody else's, who
writes to it; the next allocation of its size on that stream gets it. Two copies of all bytes are kept,
the second one as the operations that ran explain them: where they differ, somebody wrote unseen.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from isotherm.testing.extents import Extent

ALIGNMENT = 64
POISON = 0xA5
"""What fresh and freed memory holds: large negative integers, which stand out as counts and as ids."""


@dataclass(eq=False)
class Allocation:
    """Bytes handed out once. ``home`` is the name of the stream it was made on, None for host memory;
    ``scope`` the work it was made in, if any."""

    start: int
    nbytes: int
    home: str | None
    site: str
    tensor: str
    scope: object = None
    in_graph: bool = False
    is_freed: bool = False
    name: str = ""

    @property
    def is_host(self) -> bool:
        return self.home is None

    def describe(self, tensor: str) -> str:
        return f"{self.name!r} {tensor}" if self.name else f"{tensor} made at {self.site}"


class Lease:
    """What every tensor over an allocation holds. When the last one goes, the memory is free; that is
    noted here and dealt with at the next call into the simulation, since this may come at any moment."""

    __slots__ = ("_freed", "allocation")

    def __init__(self, allocation: Allocation, freed: deque[Allocation]) -> None:
        self.allocation = allocation
        self._freed = freed

    def __del__(self) -> None:
        self._freed.append(self.allocation)


class Arena:
    """All bytes of one simulated device and of its pinned host memory.

    Raises:
        MemoryError: more was asked for than ``nbytes``.
    """

    def __init__(self, nbytes: int) -> None:
        self._bytes = np.full(nbytes, POISON, np.uint8)
        self._explained = self._bytes.copy()
        self._used = 0
        self._pools: dict[tuple[str | None, int], list[int]] = defaultdict(list)
        self.freed: deque[Allocation] = deque()
        self._allocations: dict[int, Allocation] = {}

    def allocate(self, nbytes: int, home: str | None, site: str, tensor: str) -> Allocation:
        """Memory of the pool of ``home``: what was freed there last, if it fits."""
        size = _rounded(nbytes)
        pool = self._pools[home, size]
        start = pool.pop() if pool else self._grow(size)
        allocation = Allocation(start, nbytes, home, site, tensor)
        self._allocations[start] = allocation
        return allocation

    def give_back(self, allocation: Allocation) -> None:
        """The next allocation of this size at this home takes these bytes."""
        self._pools[allocation.home, _rounded(allocation.nbytes)].append(allocation.start)

    def poison(self, allocation: Allocation) -> None:
        """What its next user does to it."""
        self._bytes[allocation.start : allocation.start + allocation.nbytes] = POISON

    def tensor(
        self, allocation: Allocation, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """A plain tensor over the bytes, which keeps nothing alive: a pointer."""
        with torch.inference_mode(False):
            flat = torch.frombuffer(
                self._bytes, dtype=torch.uint8, count=_rounded(allocation.nbytes), offset=allocation.start
            )
            return flat.view(dtype).as_strided(tuple(shape), tuple(strides))

    def explain(self, extents: Iterable[Extent]) -> None:
        """What these bytes hold now is what they should."""
        for extent in extents:
            for start, stop in zip(extent.starts.tolist(), extent.stops.tolist(), strict=True):
                self._explained[start:stop] = self._bytes[start:stop]

    def unexplained(self) -> list[Allocation]:
        """Memory that changed and should not have. Told once."""
        now, explained = self._bytes[: self._used], self._explained[: self._used]
        if np.array_equal(now, explained):
            return []
        changed = np.flatnonzero(now != explained)
        explained[:] = now
        return [
            allocation
            for allocation in self._allocations.values()
            if ((changed >= allocation.start) & (changed < allocation.start + allocation.nbytes)).any()
        ]

    def _grow(self, size: int) -> int:
        start = self._used
        if start + size > len(self._bytes):
            raise MemoryError(
                f"the simulated device has {len(self._bytes)} bytes, {size} more are asked for: "
                "give the simulation a larger arena_bytes"
            )
        self._used += size
        return start


def _rounded(nbytes: int) -> int:
    return max(-(-nbytes // ALIGNMENT), 1) * ALIGNMENT
