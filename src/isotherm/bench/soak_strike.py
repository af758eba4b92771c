"""One mishap of the soak, brought about in the state in which it is wanted."""

from __future__ import annotations

from typing import get_args

import torch
import torch.distributed as dist

from isotherm.bench.soak_engine import SoakEngine
from isotherm.bench.soak_pairs import CALM, DAWDLING, RELOADED, SLOW_LINK
from isotherm.status import State, Statistics
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
        self._ushers: list[Fault] = []
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

    @property
    def num_ushers(self) -> int:
        """Failures that this rank made to usher it in."""
        return sum(usher.has_fired for usher in self._ushers)

    def see_step(self, statistics: Statistics) -> None:
        """After each step until it happened on some rank. On every rank."""
        is_degraded = statistics.state is State.DEGRADED
        if self._fault is None and self._mishap != CALM:
            is_time = statistics.state is self._state or self._engine.steps >= self._last_step
            self._bring_about(is_time and self._is_here and self._struck_in is None)
        elif self._engine.rank == 0 and is_degraded and self._mishap in _PLANNING:
            self._engine.balancer.rebalance()

    def usher_in(self) -> None:
        """Makes another failure where it is to come while degraded and that has come and gone, or never came.
        On every rank, while it has not happened on any."""
        is_wanted = self._state is State.DEGRADED and self._mishap != "transfer fails"
        is_over = all(usher.has_fired for usher in self._ushers)
        if is_wanted and is_over and self._engine.rank == 0 and not self._is_degraded:
            what: What = "wrong digest" if self._mishap.startswith("planner") else "planner raises"
            usher = fail_at(0, self._engine.steps, what)
            usher.arm(self._engine.balancer)
            self._ushers.append(usher)

    def end(self) -> None:
        """Ends what lasts as a fault."""
        if self._fault is not None:
            self._fault.end()

    @property
    def _is_degraded(self) -> bool:
        return self._engine.balancer.state is State.DEGRADED

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
