"""What a balancer says of itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Literal, get_args

from isotherm.config import Mode


class State(Enum):
    """What the balancer is doing beside the engine. Degraded: something failed, the engine goes on with what
    is published, and balancing is tried again by itself."""

    OBSERVING = "observing"
    PLANNING = "planning"
    MOVING = "moving"
    DEGRADED = "degraded"


FailureKind = Literal[
    "planner_raised",
    "planner_late",
    "plan_refused",
    "transfer_failed",
    "transfer_late",
    "room_failed",
    "stalled",
    "link_lost",
]
FAILURE_KINDS: tuple[FailureKind, ...] = get_args(FailureKind)


@dataclass(frozen=True)
class Failures:
    """How often what went wrong. docs/failures.md says of each kind what Isotherm does then."""

    planner_raised: int = 0
    planner_late: int = 0
    plan_refused: int = 0
    transfer_failed: int = 0
    transfer_late: int = 0
    room_failed: int = 0
    stalled: int = 0
    link_lost: int = 0

    def plus(self, kind: FailureKind) -> Failures:
        """With one more of ``kind``."""
        return replace(self, **{kind: getattr(self, kind) + 1})

    def as_dict(self) -> dict[str, int]:
        """Every kind and its number."""
        return asdict(self)

    @property
    def total(self) -> int:
        return sum(self.as_dict().values())


@dataclass(frozen=True)
class Served:
    """The imbalance of a window, over all layers, and where it came from.

    Attributes:
        planned: what the newest plan promised, of the heat that it was made for; None before any.
        predicted: what its shares make of the heat that came instead.
        achieved: what the ranks carried over the window.
        per_step: what a single step of the window carries, by the noise of its batch: expected, if its tokens
            choose independently with the window's heat.
    """

    planned: float | None
    predicted: float
    achieved: float
    per_step: float

    @property
    def drift(self) -> float | None:
        """What traffic that changed since the plan added."""
        return None if self.planned is None else self.predicted - self.planned

    @property
    def dispatch(self) -> float:
        """What dispatch added: whole tokens, and tables that changed within the window."""
        return self.achieved - self.predicted

    @property
    def noise(self) -> float:
        """What the noise of single batches adds to a step, which no split by shares can take back."""
        return self.per_step - self.achieved

    def __str__(self) -> str:
        planned = "" if self.planned is None else f"planned {self.planned:.3f}, drift {self.drift:+.3f}: "
        return (
            f"{planned}predicted {self.predicted:.3f}, dispatch {self.dispatch:+.3f}: achieved "
            f"{self.achieved:.3f}; in a single step, noise {self.noise:+.3f}: {self.per_step:.3f}"
        )


@dataclass(frozen=True)
class Statistics:
    """The balancer at one moment, on this rank.

    Attributes:
        state, since_step, since_seconds: what it does, and since when: by the engine's steps, and in
            seconds since the epoch.
        progress_seconds: when a window, a decision or a move was last completed, in seconds since the epoch.
        gathered_step: the step up to which heat of all ranks is known here.
        epoch: the tables that this rank routes by.
        moves, moved_bytes: experts moved over all ranks, and what arrived on this one.
        failures: of each kind; those that ranks tell each other are counted on every rank.
        waits: how often a call on the forward path blocked the host, in this process.
        imbalance: what the last window carried, over all layers; None before the first. imbalance_p50,
            imbalance_p95, imbalance_worst: over its layers.
        served: that imbalance beside what was planned and predicted; None before the first window.
    """

    state: State
    since_step: int
    since_seconds: float
    progress_seconds: float
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
    failures: Failures
    waits: int
    imbalance: float | None
    imbalance_p50: float | None
    imbalance_p95: float | None
    imbalance_worst: float | None
    served: Served | None


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
