"""What the detector says, one kind a class. Each reads as a sentence that names the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from isotherm.testing.clocks import Kind, Stamp


@dataclass(frozen=True, eq=False)
class Operation:
    """Something that touches memory: where it stands in the order, and who asked for it where."""

    label: str
    site: str
    stamp: Stamp

    def __str__(self) -> str:
        return f"{self.label!r} on {self.stamp.lane} ({self.site})"


@dataclass(frozen=True)
class Race:
    """Two operations touch the same bytes, one of them writes, and nothing orders them."""

    first: Operation
    first_writes: bool
    second: Operation
    second_writes: bool
    tensor: str

    @property
    def missing_edge(self) -> str:
        """What would order the two as they were enqueued."""
        first, second = self.first.stamp.lane, self.second.stamp.lane
        if first.kind is not Kind.THREAD and second.kind is not Kind.THREAD:
            return (
                f"{second.name} must wait for an event recorded on {first.name} behind {self.first.label!r}"
            )
        if first.kind is not Kind.THREAD:
            return (
                f"{second} must see an event recorded on {first.name} behind {self.first.label!r} done "
                "(query or synchronize) before it goes on"
            )
        return (
            f"{first} must hand the memory over: put it into a Handoff behind {self.first.label!r}, from "
            f"which the thread that enqueues {self.second.label!r} takes it"
        )

    def __str__(self) -> str:
        return (
            f"race on {self.tensor}: {_verb(self.second_writes)} by {self.second} is not ordered with the "
            f"{_verb(self.first_writes)} by {self.first}; {self.missing_edge}"
        )


@dataclass(frozen=True)
class FreedInUse:
    """Memory was given back while an operation may still touch it."""

    operation: Operation
    tensor: str
    allocated: str
    home: str

    def __str__(self) -> str:
        return (
            f"freed in use: {self.tensor}, allocated at {self.allocated}, went back to {self.home} "
            f"while {self.operation} may still touch it; a Completion of an event recorded on "
            f"{self.operation.stamp.lane.name} behind {self.operation.label!r} should have owned it"
        )


@dataclass(frozen=True)
class WrittenAfterHandOver:
    """Memory was written that had been handed over for good, whether or not anything orders the two."""

    operation: Operation
    tensor: str
    handed_over: str

    def __str__(self) -> str:
        return (
            f"written after it was handed over: {self.tensor}, handed over at {self.handed_over}, is written "
            f"by {self.operation}; lend it (borrowed=True), or give a tensor of its own each time"
        )


@dataclass(frozen=True)
class Undeclared:
    """Work touched memory that ``reads=`` and ``writes=`` do not name."""

    operation: Operation
    tensor: str
    by: str
    writes: bool
    site: str

    def __str__(self) -> str:
        argument = "writes=" if self.writes else "reads="
        return (
            f"undeclared {_verb(self.writes)} of {self.tensor} by {self.by} at {self.site}, in the work "
            f"{self.operation}: name it in {argument}"
        )


@dataclass(frozen=True)
class UnexplainedWrite:
    """Memory changed behind the streams' back: through numpy, a compiled kernel or a raw pointer."""

    tensor: str
    during: str
    seen: str

    def __str__(self) -> str:
        return (
            f"unexplained write: {self.tensor} changed during {self.during} (seen at {self.seen}), and "
            "nothing there declares it; name it in writes= of the work that writes it, on the lane that does"
        )


@dataclass(frozen=True)
class CaptureBroken:
    """Something that a captured graph cannot hold."""

    what: str
    site: str

    def __str__(self) -> str:
        return f"broken capture: {self.what} at {self.site}"


@dataclass(frozen=True)
class DeviceFault:
    """An operation failed on the device, where no caller can catch it."""

    operation: Operation
    error: str

    def __str__(self) -> str:
        return f"device fault: {self.operation} raised {self.error}"


Finding: TypeAlias = (
    Race | FreedInUse | WrittenAfterHandOver | Undeclared | UnexplainedWrite | CaptureBroken | DeviceFault
)


def _verb(writes: bool) -> str:
    return "write" if writes else "read"
