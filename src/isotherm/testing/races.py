"""The detector of races: accesses to memory, and whether something orders those that conflict.

Accesses are recorded when work is enqueued, so that what is found does not hang on the order in which
a schedule, or a device, happened to run it. The rule: two accesses that share a byte, one of them a
write, are a race unless one's operation happens before the other's.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

from isotherm.testing.clocks import Lane
from isotherm.testing.extents import Extent
from isotherm.testing.findings import Finding, FreedInUse, Operation, Race, WrittenAfterHandOver
from isotherm.testing.timeline import Timeline, site_of_caller

KEPT_OPERATIONS = 100_000


class Memory(Protocol):
    """A piece of memory by itself: bytes of two pieces never overlap."""

    def describe(self, tensor: str) -> str:
        """Names ``tensor`` (its type and shape), which lies in this memory."""


@dataclass(frozen=True, eq=False)
class Access:
    """Bytes of one piece of memory that an operation touches. A write may read too."""

    operation: Operation
    extent: Extent
    writes: bool
    tensor: str

    def conflicts(self, other: Access) -> bool:
        return (
            (self.writes or other.writes)
            and not self.operation.stamp.is_ordered(other.operation.stamp)
            and self.operation is not other.operation
            and self.extent.overlaps(other.extent)
        )

    def stands_for(self, earlier: Access) -> bool:
        """Whether whatever races with ``earlier`` from now on races with this access too: what comes later
        and is not ordered behind ``earlier`` is not ordered behind what comes after ``earlier`` either."""
        return (
            (self.writes or not earlier.writes)
            and earlier.operation.stamp.is_before(self.operation.stamp)
            and self.extent.covers(earlier.extent)
        )


class Detector:
    """Findings about one run. Any thread may use it."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.timeline = Timeline()
        self.operations: deque[Operation] = deque(maxlen=KEPT_OPERATIONS)
        self.lock = threading.RLock()
        self._accesses: dict[Memory, list[Access]] = {}
        self._owned: dict[Memory, list[tuple[Extent, str]]] = {}
        self._said: set[Hashable] = set()

    def begin(self, lane: Lane, label: str, verb: str = "enqueued", site: str = "") -> Operation:
        """The next operation of ``lane``."""
        with self.lock:
            operation = Operation(label, site or site_of_caller(), lane.stamp())
            self.operations.append(operation)
            self.timeline.note(lane.name, verb, label, operation.site)
            return operation

    def touch(
        self, operation: Operation, memory: Memory, extent: Extent, *, writes: bool, tensor: str
    ) -> None:
        """Records an access, and finds its races with those recorded before."""
        access = Access(operation, extent, writes, tensor)
        with self.lock:
            if writes:
                self._check_owned(access, memory)
            before = self._accesses.setdefault(memory, [])
            for other in before:
                if access.conflicts(other):
                    self._report_race(other, access, memory)
            before[:] = [other for other in before if not access.stands_for(other)]
            before.append(access)

    def own(self, memory: Memory, extent: Extent) -> None:
        """These bytes were handed over: whoever writes to them from now on, until they are freed, is
        found."""
        with self.lock:
            self._owned.setdefault(memory, []).append((extent, site_of_caller(beyond="isotherm.heat")))

    def release(self, poison: Operation, memory: Memory, tensor: str, *, allocated: str, home: str) -> None:
        """The memory is given up: its next user writes to it by ``poison``. Finds who still needs it."""
        with self.lock:
            self._owned.pop(memory, None)
            for access in self._accesses.pop(memory, ()):
                if not access.operation.stamp.is_ordered(poison.stamp):
                    finding = FreedInUse(access.operation, memory.describe(tensor), allocated, home)
                    key = ("freed", access.operation.label, access.operation.site, allocated)
                    self.report(finding, key)

    def forget(self, memory: Memory) -> None:
        """The memory is gone, and nobody can have used it since."""
        with self.lock:
            self._owned.pop(memory, None)
            self._accesses.pop(memory, None)

    def report(self, finding: Finding, key: Hashable = None) -> None:
        """Adds a finding; one with a ``key`` that was reported before says nothing new."""
        with self.lock:
            if key is not None and key in self._said:
                return
            self._said.add(key)
            self.findings.append(finding)
            self.timeline.note("detector", "FOUND", str(finding))

    def check(self) -> None:
        """Raises ``AssertionError`` with every finding, and the timeline that led there."""
        if self.findings:
            found = "\n".join(f"{number}. {finding}" for number, finding in enumerate(self.findings, 1))
            raise AssertionError(f"{found}\n\n{self.timeline.text()}")

    def _check_owned(self, access: Access, memory: Memory) -> None:
        for extent, site in self._owned.get(memory, ()):
            if extent.overlaps(access.extent):
                operation, tensor = access.operation, memory.describe(access.tensor)
                key = ("handed over", site, operation.label, operation.site)
                self.report(WrittenAfterHandOver(operation, tensor, site), key)

    def _report_race(self, first: Access, second: Access, memory: Memory) -> None:
        one, two = first.operation, second.operation
        key = (
            "race",
            one.stamp.lane,
            one.site,
            two.stamp.lane,
            two.site,
            memory,
            first.writes,
            second.writes,
        )
        tensor = memory.describe(second.tensor)
        self.report(Race(one, first.writes, two, second.writes, tensor), key)
