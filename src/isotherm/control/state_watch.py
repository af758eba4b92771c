"""Keeps the state of a balancer, and tells it as it is: in the log, and to whoever asks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.control.link import Link
from isotherm.control.states import Life, Limits, Seen, is_overdue, next_life, retry_step
from isotherm.status import FailureKind, Failures, State

logger = logging.getLogger("isotherm")

_LATE: dict[State, FailureKind] = {State.PLANNING: "planner_late", State.MOVING: "transfer_late"}


@dataclass(frozen=True)
class _Beat:
    """When this rank made a round last: by the clock, and by the steps it had ended itself."""

    seconds: float
    step: int


class Watch:
    """Participant: the state that all ranks are in, and the deadline that it has.

    Every rank tells the steps that it has ended; the least of them is the clock of all. Rank 0 tells when
    the state's deadline has passed, since seconds are its own.

    Args:
        step: reads the steps that this rank has ended. Never waits.
        call_off: called when something failed, in the same round on every rank, to give up what is
            under way. Must not raise.
        on_round: called in each round, before anything else acts.
        on_rejoin: called with a link that was made in the place of one that broke, to agree on what has no
            participant of its own. The same calls on every rank.
    """

    header_words = 2  # steps ended, whether the deadline has passed

    def __init__(
        self,
        limits: Limits,
        *,
        rank: int,
        step: Callable[[], int],
        call_off: Callable[[], None],
        on_round: Callable[[], None],
        on_rejoin: Callable[[Link], None] = lambda link: None,
    ) -> None:
        self.limits = limits
        self._rank = rank
        self._own_step = step
        self._call_off = call_off
        self._on_round = on_round
        self._on_rejoin = on_rejoin
        self._step = 0
        self._clock_seconds = time.monotonic()
        self._stepped_seconds = time.monotonic()  # when all ranks had ended a further step
        self._beat = _Beat(time.monotonic(), 0)
        # Replaced whole, and read from other threads.
        self.life = Life()
        self.failures = Failures()
        self.since_seconds = time.time()
        self.progress_seconds = time.time()

    def header(self) -> Sequence[int]:
        # While the engine stands still it is no later than it was.
        now = min(time.monotonic(), self._stepped_seconds + self.limits.stalled_seconds)
        return (self._own_step(), is_overdue(self.life, self._step, now - self._clock_seconds, self.limits))

    def act(self, headers_GW: Int64Array, link: Link) -> bool:
        self._end_stall()
        step, self._step = self._step, int(headers_GW[:, 0].min())
        if self._step > step:
            self._end_standstill()
        if headers_GW[0, 1]:
            kind = _LATE[self.life.state]
            waited = self._step - self.life.clock_step
            self.fail(kind, f"no progress in {waited} steps of {self.life.state.value}")
        self.see(Seen.ROUND)
        self._on_round()
        return False

    def see(self, seen: Seen) -> None:
        """Takes in what all ranks see in this round. On the heartbeat's thread."""
        before = self.life
        self.life = next_life(before, seen, self._step, self.limits)
        if seen is not Seen.ROUND:
            self.note_progress()
        if self.life.clock_step != before.clock_step or self.life.state is not before.state:
            self._clock_seconds = time.monotonic()
        if self.life.state is not before.state:
            self.since_seconds = time.time()
            if before.state is State.DEGRADED:
                logger.info("isotherm: step %d: balancing again", self._step)

    def note_progress(self) -> None:
        """Something was completed that changes no state."""
        self.progress_seconds = time.time()

    def fail(self, kind: FailureKind, message: str) -> None:
        """Takes in a failure that all ranks see in this round, and calls off what is under way."""
        self.failures = self.failures.plus(kind)
        before = self.life
        self.life = next_life(before, Seen.FAILED, self._step, self.limits)
        self._clock_seconds = time.monotonic()
        if before.state is not State.DEGRADED:
            self.since_seconds = time.time()
        # Once, until something went well again.
        level = logging.WARNING if before.streak == 0 else logging.DEBUG
        logger.log(
            level,
            "isotherm: degraded at step %d, %s: %s. Serving goes on with what is published; balancing is "
            "tried again from step %d on",
            self._step,
            kind,
            message,
            retry_step(self.life, self.limits),
        )
        self._call_off()

    def lose(self) -> None:
        """There are no more rounds, unless the link is made anew. The heartbeat has said why."""
        self.failures = self.failures.plus("link_lost")
        if self.life.state is not State.DEGRADED:
            self.since_seconds = time.time()
        self.life = next_life(self.life, Seen.LOST, self._step, self.limits)
        self._call_off()

    def rejoin(self, link: Link) -> None:
        """Degraded, and tried again after the pause, as after any other failure: the same on every rank."""
        life = self.life
        words_W = np.array([self._own_step(), life.since_step, life.streak], np.int64)
        words_GW = link.all_gather(words_W)
        step, since, _ = words_GW.min(axis=0).tolist()
        streak = int(words_GW[:, 2].max())
        self._step = step
        self.life = Life(State.DEGRADED, since_step=since, clock_step=step, streak=streak)
        self._clock_seconds = self._stepped_seconds = time.monotonic()
        self._beat = _Beat(time.monotonic(), self._own_step())
        self._on_rejoin(link)

    @property
    def is_stalled(self) -> bool:
        """Whether rounds stand still while this rank makes steps: a peer is frozen, or cut off. Any
        thread; never waits."""
        beat, limits = self._beat, self.limits
        if self._own_step() - beat.step <= limits.stalled_steps:
            return False
        return time.monotonic() - beat.seconds > limits.stalled_seconds

    @property
    def state(self) -> tuple[State, int, float]:
        """The state, and the step and the time (seconds since the epoch) since when. Any thread."""
        life = self.life  # read once: another thread replaces it
        if self.is_stalled and life.state is not State.DEGRADED:
            beat = self._beat
            return State.DEGRADED, beat.step, time.time() - (time.monotonic() - beat.seconds)
        return life.state, life.since_step, self.since_seconds

    def _end_standstill(self) -> None:
        """A step after a long time: a deadline does not count that."""
        gap = time.monotonic() - self._stepped_seconds
        self._stepped_seconds += gap
        if gap > self.limits.stalled_seconds:
            self._clock_seconds = min(self._clock_seconds + gap, self._stepped_seconds)

    def _end_stall(self) -> None:
        beat, step = self._beat, self._own_step()
        gap = time.monotonic() - beat.seconds
        if gap > self.limits.stalled_seconds:
            # Nobody could make progress meanwhile: what is under way is not late for that.
            self._clock_seconds = min(self._clock_seconds + gap, time.monotonic())
        if self.is_stalled:
            self.failures = self.failures.plus("stalled")
            logger.warning(
                "isotherm: a rank was frozen or cut off: rank %d made no round for %.1f s, "
                "while it made steps %d to %d; rounds go on",
                self._rank,
                gap,
                beat.step,
                step,
            )
        self._beat = _Beat(time.monotonic(), step)
