"""Vector clocks: which operation happens before which, over streams, host threads and communicators.

A lane is a place where operations come one after the other. Each operation gets a stamp: its lane, its
number there, and what it knows of every other lane, which is the numbers of the last operations that
happen before it. After L. Lamport (1978), F. Mattern (1989) and C. Fidge (1988).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias


class Kind(enum.Enum):
    """What a lane is, in the words that findings use."""

    STREAM = "stream"
    THREAD = "thread"
    COMMUNICATOR = "communicator"


Knowledge: TypeAlias = Mapping["Lane", int]
"""For each lane, the number of the newest operation known to have happened."""


@dataclass(eq=False)
class Lane:
    """Operations in order, and what the next one will know."""

    name: str
    kind: Kind
    known: dict[Lane, int] = field(default_factory=dict)

    def learn(self, knowledge: Knowledge) -> None:
        """From here on, operations of this lane come after what ``knowledge`` names: an edge."""
        for lane, number in knowledge.items():
            if number > self.known.get(lane, 0):
                self.known[lane] = number

    def snapshot(self) -> Knowledge:
        """What the next operation would know, as it is now."""
        return dict(self.known)

    def stamp(self) -> Stamp:
        """Begins the next operation."""
        self.known[self] = self.known.get(self, 0) + 1
        return Stamp(self, self.known[self], dict(self.known))

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name!r}"


@dataclass(frozen=True, eq=False)
class Stamp:
    """One operation among all others. It knows itself."""

    lane: Lane
    number: int
    known: Knowledge

    def is_before(self, other: Stamp) -> bool:
        """Whether this operation is done, in every legal order, before ``other`` begins."""
        return other.known.get(self.lane, 0) >= self.number and self is not other

    def is_ordered(self, other: Stamp) -> bool:
        return self.is_before(other) or other.is_before(self)
