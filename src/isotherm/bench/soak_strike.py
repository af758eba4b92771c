"""One mishap of the soak, brought about in the state in which it is wanted."""

from __future__ import annotations

from typing import get_args

import torch
import torch.distributed as dist

from isotherm.bench.soak_engine import SoakEngine
from isotherm.bench.soak_pairs import CALM, DAWDLING, RELOADED, SLOW_LINK
from isotherm.status import FailureKind, Failures, State, Statistics
from isotherm.testing.faults import Fault, What, fail_at

PATIENCE_STEPS = 400
"""Steps in which a state is waited for; then it happens in any."""

_SLOW_SECONDS = 0.02
_PLANNING = ("planner raises", "planner hangs", "wrong digest")


class Strike:
    """What goes wrong in a round: made on every rank with the same arguments, and told of each step.

    Observing, planning and moving come by themselves, under traffic that shifts. To be met while degraded it
    is ushered in by another failure, and by another one after that where it missed that state; an attempt to
    plan is asked for then.

    Args:
        rank: where it happens. state: in which; None: nothing is to happen.
        seconds: how long what lasts goes on.
    """

    def __init__(
        self, engine: SoakEngine, mishap: str, rank: int, state: State | None, seconds: float
    ) -> None:
        self._engine = engine
        self._mishap = mishap
        self._is_here = engine.rank == rank
        self._state = state
        self._last_step = engine.steps + PATIENCE_STEPS
        self._struck_in: State | None = None
        self._fault: Fault | None = None
        self._usher: Fault | None = None
        self._usher_what, self._usher_kind = _usher_of(mishap)
        self._told_before = 0
        for what in get_args(What):
            if what == mishap:
                self._fault = fail_at(
                    rank,
                    engine.steps + 1,
                    what,
                    seconds=seconds,
                    state=state,
                    patience_steps=PATIENCE_STEPS,
                )
                self._fault.arm(engine.balancer)

    @property
    def must_be_told(self) -> bool:
        """Whether it is a failure. A rank that stops stops the engine too, whose ranks meet in every layer:
        so nothing need be told."""
        return self._fault is not None and self._fault.kind != "stalled"

    @property
    def struck_in(self) -> State | None:
        """The state that the rank told when it happened there; None before, and on other ranks."""
        struck_in = self._struck_in if self._fault is None else self._fault.struck_in
        return struck_in if self._is_here else None

    @property
    def has_happened(self) -> bool:
        """Whether it happened on this rank, or nothing is to."""
        return self._mishap == CALM or self.struck_in is not None

    def num_told(self, failures: Failures) -> int:
        """Failures but those that are made to usher it in."""
        return failures.total - failures.as_dict()[self._usher_kind]

    def see_step(self, statistics: Statistics) -> None:
        """After each step until it happened on some rank. On every rank."""
        if self._fault is None and self._mishap != CALM:
            is_time = statistics.state is self._state or self._engine.steps >= self._last_step
            self._bring_about(is_time and self._is_here and self._struck_in is None)
        elif self._mishap in _PLANNING and statistics.state is self._state is State.DEGRADED:
            self._engine.balancer.rebalance()

    def usher_in(self) -> None:
        """Makes another failure where it is to come while degraded and that has come and gone, or never came.
        On every rank, while it has not happened on any."""
        is_wanted = self._state is State.DEGRADED and self._mishap != "transfer fails"
        if not is_wanted or self._engine.rank != 0:
            return
        now = self._engine.balancer.statistics()
        told = now.failures.as_dict()[self._usher_kind]
        # The one before may have happened, and not be told yet.
        is_over = self._usher is None or (self._usher.has_fired and told > self._told_before)
        if is_over and now.state is not State.DEGRADED:
            self._told_before = told
            self._usher = fail_at(0, self._engine.steps, self._usher_what)
            self._usher.arm(self._engine.balancer)

    def end(self) -> None:
        """Ends what lasts as a fault."""
        if self._fault is not None:
            self._fault.end()

    def _bring_about(self, is_time: bool) -> None:
        """Where it is no fault but something that this engine does; `is_time`, on the rank concerned."""
        engine = self._engine
        if self._mishap == RELOADED:  # all ranks do it together
            is_agreed = torch.tensor(int(is_time))
            dist.all_reduce(is_agreed)
            is_time = bool(is_agreed)
        if not is_time:
            return
        self._struck_in = engine.balancer.state
        if self._mishap == RELOADED:
            engine.reload()
        elif self._mishap == SLOW_LINK:
            engine.link.longest_seconds = _SLOW_SECONDS
        elif self._mishap == DAWDLING:
            engine.dawdle_seconds = _SLOW_SECONDS


def _usher_of(mishap: str) -> tuple[What, FailureKind]:
    """A failure of another kind, and that kind."""
    if mishap.startswith("planner"):
        return "wrong digest", "plan_refused"
    return "planner raises", "planner_raised"
