"""Where rank 0 plans: one attempt at a time, beside the rounds, and late ones are left behind."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from isotherm.arrays import Int64Array
from isotherm.control.link import Link
from isotherm.streams import Handoff, Stream

logger = logging.getLogger("isotherm")

_LEFT_BEHIND_AT_MOST = 2
"""Attempts that never returned, each a thread. With so many of them, no other is begun."""


Made = TypeVar("Made")


@dataclass(frozen=True)
class _Outcome(Generic[Made]):
    attempt: int
    made: Made | None
    error: BaseException | None = None


class PlanDesk(Generic[Made]):
    """Participant: rank 0 plans, and every rank is told when an attempt begins and how it ends.

    An attempt runs on a stream of the host and hands its outcome to the heartbeat. One that is called off
    keeps its thread for as long as it likes; what it returns is discarded by its number, and the next
    attempt gets a thread of its own.

    Args:
        make_stream: makes a stream for attempts.
        take: makes what an attempt returned into a plan, or into None, on the heartbeat's thread of rank 0.
        announce: takes the plan.
        on_begun, on_ended, on_failed: called in the same round on every rank: an attempt began; it ended
            without a plan; it raised.
        poke: asks for a round soon.
    """

    header_words = 3  # attempts begun, ended without a plan, failed

    def __init__(
        self,
        make_stream: Callable[[], Stream],
        take: Callable[[Made], bytes | None],
        *,
        announce: Callable[[bytes], None],
        on_begun: Callable[[], None],
        on_ended: Callable[[], None],
        on_failed: Callable[[], None],
        poke: Callable[[], None],
    ) -> None:
        self._make_stream = make_stream
        self._take = take
        self._announce = announce
        self._tell = (on_begun, on_ended, on_failed)
        self._poke = poke
        self._stream: Stream | None = None
        self._left_behind: list[threading.Event] = []
        self._returned = threading.Event()
        self._returned.set()
        self._outcomes: Handoff[_Outcome[Made]] = Handoff()
        self._is_open = False
        self._attempts = 0
        # Begun, ended, failed: this rank's, and what it has heard of rank 0's.
        self._told = [0, 0, 0]
        self._heard = [0, 0, 0]
        self._shown = 0  # attempts begun that a header has told of
        self._is_off = False  # in this round

    @property
    def is_free(self) -> bool:
        """Whether an attempt may begin."""
        self._left_behind = [returned for returned in self._left_behind if not returned.is_set()]
        return not self._is_open and len(self._left_behind) < _LEFT_BEHIND_AT_MOST

    def begin(self, work: Callable[[], Made]) -> None:
        """Begins an attempt. On rank 0, on the heartbeat's thread."""
        assert self.is_free, "an attempt is under way"
        if self._stream is None:
            self._stream = self._make_stream()
        self._is_open = True
        self._told[0] += 1
        self._attempts += 1
        attempt, self._returned = self._attempts, threading.Event()
        returned = self._returned

        def run() -> None:
            try:
                outcome = _Outcome(attempt, work())
            except BaseException as error:  # SystemExit too: an attempt without an outcome is never over
                outcome = _Outcome[Made](attempt, None, error)
            self._outcomes.put(outcome)
            returned.set()
            self._poke()

        self._stream.submit(run)

    def call_off(self) -> None:
        """Gives up the attempt that is under way. On every rank, in the same round: nobody is told any more
        that it began."""
        self._is_off = True
        self._told[0] = min(self._told[0], self._shown)
        if not self._is_open:
            return
        self._is_open = False
        if not self._returned.is_set():
            self._left_behind.append(self._returned)
            self._stream = None  # dropped: its thread ends once the attempt returns

    def rejoin(self, link: Link) -> None:
        """An attempt that was under way is given up, and attempts are counted anew."""
        self.call_off()
        self._told, self._heard, self._shown = [0, 0, 0], [0, 0, 0], 0

    def header(self) -> Sequence[int]:
        self._is_off = False
        while (outcome := self._outcomes.try_take()) is not None:
            if self._is_open and outcome.attempt == self._attempts:
                self._close_attempt(outcome)
        self._shown = self._told[0]
        return tuple(self._told)

    def act(self, headers_GW: Int64Array, link: Link) -> bool:
        for index, tell in enumerate(self._tell):
            number = int(headers_GW[0, index])
            if number > self._heard[index]:
                self._heard[index] = number
                is_called_off = index == 0 and self._is_off
                if not is_called_off:
                    tell()
        return False

    def close(self, timeout_seconds: float) -> None:
        """Waits for an attempt that is under way, at most ``timeout_seconds``, and ends the thread; an
        attempt that does not return is left behind, a daemon."""
        if self._stream is not None and self._returned.wait(timeout_seconds):
            self._stream.close()
        self._stream = None

    def _close_attempt(self, outcome: _Outcome[Made]) -> None:
        self._is_open = False
        if outcome.error is not None:
            logger.error("isotherm: planning failed", exc_info=outcome.error)
            self._told[2] += 1
            return
        assert outcome.made is not None, "an attempt that did not raise returned something"
        plan = self._take(outcome.made)
        if plan is None:
            self._told[1] += 1
        else:
            self._announce(plan)
