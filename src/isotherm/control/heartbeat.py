"""Rounds over a link: headers gathered, participants acting on them, failures told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.control.link import Link
from isotherm.control.spans import Span, no_span
from isotherm.control.steps import StepWatch
from isotherm.errors import LinkError, PeerFailedError, ProtocolError
from isotherm.status import Memory

logger = logging.getLogger("isotherm")


class Participant(Protocol):
    """Owns ``header_words`` int64 words of each header, and acts on the gathered ones."""

    header_words: int

    def header(self) -> Sequence[int]:
        """This rank's words of the next round. Reads local state only; never waits. Called in every
        round, after a failure too."""

    def act(self, headers_GW: Int64Array, link: Link) -> bool:
        """Makes the calls on ``link`` that ``headers_GW`` (this participant's words of all ranks, valid
        during the call) call for. Whether it has more to do soon.

        Which calls must depend on ``headers_GW`` and on what earlier rounds agreed, nothing else. What it
        raises, it must raise after them: a rank that leaves one out leaves the others waiting in it until
        the group's time-out.
        """


_ROUND, _CLOSING, _FAILED, _POKED, _STEP = range(5)
_BASE_WORDS = 5


class Heartbeat:
    """Makes rounds over ``link`` for ``participants``, in the order given.

    ``beat()`` makes one round on the calling thread. ``start()`` makes them on a thread of its own until
    every rank has asked to close. Rounds are ``interval_seconds`` apart while there is something to do;
    each round in which no participant had anything, and no rank had been poked, doubles the pause up to
    ``idle_seconds``. All ranks read that alike, so none is left waiting for the long pause of another.

    When a participant raises on one rank, that rank says so in its headers: every rank logs it once, calls
    ``on_failure``, and no participant acts any more on any rank. Rounds go on, so all can close. When the
    link fails, or a rank is in another round, the thread ends: it is logged once and ``on_failure``
    called. In either case the engine goes on.

    Args:
        interval_seconds, idle_seconds: the shortest and the longest pause between two rounds.
        step: reads the steps that this rank has ended. Never waits.
        lag_steps: a rank further behind the foremost is named in a WARNING; 0: never.
        span: opens spans of a timeline.
        on_failure: called once, on the thread that makes the rounds, with what was raised here, or with a
            PeerFailedError where another rank failed. Must not raise.
    """

    def __init__(
        self,
        link: Link,
        participants: Sequence[Participant],
        *,
        interval_seconds: float,
        idle_seconds: float = 1.0,
        step: Callable[[], int] = lambda: 0,
        lag_steps: int = 0,
        span: Span = no_span,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._link = link
        self._participants = tuple(participants)
        self._pauses = interval_seconds, max(interval_seconds, idle_seconds)
        self._step = step
        self._span = span
        self._on_failure = on_failure
        words = _BASE_WORDS + sum(participant.header_words for participant in self._participants)
        self._words_W = np.zeros(words, np.int64)
        self._headers_GW = np.zeros((link.size, words), np.int64)
        self._steps = StepWatch(lag_steps)
        # Open when somebody poked. A bare lock: releasing it cannot wait, as setting an Event could.
        self._gate = threading.Lock()
        self._gate.acquire()
        self._closing = False
        self._failed = False  # on this rank
        self._resting = False  # after a failure on any rank
        self._poked = True  # since the last header
        self._quiet = False
        self._thread: threading.Thread | None = None
        self.rounds = 0

    @staticmethod
    def memory(ranks: int, header_words: int) -> Memory:
        """The headers of all ranks, and this one's, where participants own ``header_words`` of each."""
        return Memory(host_bytes=8 * (_BASE_WORDS + header_words) * (ranks + 1))

    @property
    def lagging(self) -> tuple[int, ...]:
        """Ranks that fell more than ``lag_steps`` behind and have not caught up yet."""
        return self._steps.lagging

    def beat(self) -> bool:
        """One round. False when every rank has asked to close, and no further round may follow.

        Raises:
            ProtocolError: a rank is in another round.
            LinkError: the link failed.
        """
        self._fill_header()
        with self._span("headers", "heartbeat"):
            self._link.all_gather(self._words_W, out=self._headers_GW)
        headers_GW = self._headers_GW
        self._check_rounds(headers_GW[:, _ROUND])
        self._read_failures(headers_GW[:, _FAILED])
        self._steps.see(headers_GW[:, _STEP])
        busy = not self._resting and self._act()
        self._quiet = not (busy or headers_GW[:, _POKED].any())
        self.rounds += 1
        if not headers_GW[:, _CLOSING].all():
            return True
        self._steps.see_end(headers_GW[:, _STEP])
        return False

    def start(self) -> None:
        """Starts the thread. Call once, on every rank."""
        self._thread = threading.Thread(target=self._run, name="isotherm-heartbeat", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Makes this rank ready for the next round at once, and the pauses after it short on every rank.
        Never waits. Pokes that come before that round are one."""
        try:
            self._gate.release()
        except RuntimeError:  # it was open
            return

    def close(self, timeout_seconds: float) -> bool:
        """Asks to close and waits until every rank has, or for ``timeout_seconds``: then the thread is
        left behind (a daemon) and False returned."""
        self._closing = True
        if self._thread is None:
            return True
        self.poke()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            logger.warning(
                "isotherm: not every rank closed its balancer within %g s; the heartbeat of rank %d "
                "is left behind",
                timeout_seconds,
                self._link.rank,
            )
            return False
        return True

    def _run(self) -> None:
        shortest, longest = self._pauses
        pause = shortest
        try:
            while self.beat():
                pause = min(2 * pause, longest) if self._quiet else shortest
                # A rank that closes is paced by those that do not.
                self._poked = self._gate.acquire(timeout=0 if self._closing else pause)
        except BaseException as error:
            logger.exception("isotherm: the heartbeat of rank %d stopped", self._link.rank)
            if not (self._failed or self._resting):
                self._on_failure(error)

    def _fill_header(self) -> None:
        # Closing is read before the step: a rank that has asked to close ends no more steps.
        self._words_W[_CLOSING] = self._closing
        self._words_W[_STEP] = self._step()
        self._words_W[_ROUND] = self.rounds
        self._words_W[_POKED] = self._poked
        first = _BASE_WORDS
        for participant in self._participants:
            behind = first + participant.header_words
            try:
                self._words_W[first:behind] = participant.header()
            except Exception as error:
                self._fail(participant, error)
            first = behind
        self._words_W[_FAILED] = self._failed

    def _act(self) -> bool:
        """Every participant acts, after one that raised too: on the other ranks they do."""
        busy = False
        first = _BASE_WORDS
        for participant in self._participants:
            behind = first + participant.header_words
            try:
                busy |= bool(participant.act(self._headers_GW[:, first:behind], self._link))
            except LinkError:
                raise
            except Exception as error:
                self._fail(participant, error)
            first = behind
        return busy

    def _fail(self, participant: Participant, error: Exception) -> None:
        if self._failed:
            return
        self._failed = True
        logger.error(
            "isotherm: %s of rank %d failed; the other ranks are told in the next round",
            type(participant).__name__,
            self._link.rank,
            exc_info=error,
        )
        if not self._resting:
            self._on_failure(error)

    def _read_failures(self, failed_G: Int64Array) -> None:
        if self._resting or not failed_G.any():
            return
        self._resting = True
        ranks = ", ".join(str(rank) for rank in np.flatnonzero(failed_G))
        message = f"rank {ranks} failed: every rank goes on serving what is published, and changes nothing"
        logger.error("isotherm: %s", message)
        if not self._failed:
            self._on_failure(PeerFailedError(message))

    def _check_rounds(self, rounds_G: Int64Array) -> None:
        strangers = np.flatnonzero(rounds_G != self.rounds)
        if len(strangers):
            rank = int(strangers[0])
            raise ProtocolError(
                f"rank {rank} is in round {rounds_G[rank]}, rank {self._link.rank} in {self.rounds}: "
                "the group is used by somebody else too; give the balancer a group of its own"
            )
