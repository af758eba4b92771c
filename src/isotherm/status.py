"""What a balancer says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from isotherm.config import Mode


class State(Enum):
    """What the balancer is doing beside the engine."""

    OBSERVING = "observing"
    PLANNING = "planning"
    MOVING = "moving"
    DEGRADED = "degraded"


@dataclass(frozen=True)
class Statistics:
    """The balancer at one moment, on this rank.

    ``gathered_step`` is the step up to which heat of all ranks is known here. ``moves`` counts experts
    moved over all ranks, ``moved_bytes`` what arrived on this one; ``waits`` counts the times that a call
    on the forward path blocked the host, in this process. ``imbalance`` is what the last window carried,
    None before the first.
    """

    state: State
    mode: Mode
    steps: int
    gathered_step: int
    epoch: int
    rounds: int
    windows: int
    plans: int
    moves: int
    moved_bytes: int
    skipped_snapshots: int
    failures: int
    waits: int
    imbalance: float | None


@dataclass(frozen=True)
class Memory:
    """Bytes of buffers that are made once. ``device`` lies where counts and tables live, ``pinned`` is host
    memory that copies to and from a device need not wait for (plain memory beside a CPU), ``host`` is
    ordinary memory."""

    device_bytes: int = 0
    pinned_bytes: int = 0
    host_bytes: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(
            self.device_bytes + other.device_bytes,
            self.pinned_bytes + other.pinned_bytes,
            self.host_bytes + other.host_bytes,
        )


@dataclass(frozen=True)
class TablesInForce:
    """From ``step`` on this rank routes by the tables of ``epoch``."""

    step: int
    epoch: int
