"""Rounds over a link: headers gathered, participants acting on them, failures told."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable, Sequence

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.control.link import Link, LostLink
from isotherm.control.participant import Participant, Seat
from isotherm.control.relink import Relink
from isotherm.control.spans import Span, no_span
from isotherm.control.steps import StepWatch
from isotherm.errors import LinkError, PeerFailedError, ProtocolError
from isotherm.status import Memory

logger = logging.getLogger("isotherm")


_ROUND, _CLOSING, _FAILED, _POKED, _STEP = range(5)
_BASE_WORDS = 5


def step_of(headers_GW: Int64Array) -> int:
    """The step that all ranks have ended, by the headers of a round."""
    return int(headers_GW[:, _STEP].min())


_EXIT_SECONDS = 2.0
"""How long the end of the interpreter waits for a round that is under way."""


class Heartbeat:
    """Makes rounds over ``link`` for ``participants``, in the order given.

    ``beat()`` makes one round on the calling thread. ``start()`` makes them on a thread of its own until
    every rank has asked to close. Rounds are ``interval_seconds`` apart while there is something to do;
    each round in which no participant had anything, and no rank had been poked, doubles the pause up to
    ``idle_seconds``. All ranks read that alike, so none is left waiting for the long pause of another.

    When a participant raises on one rank, that rank says so in its next header. In that round every rank
    calls ``on_failure``, and the participant rests on every rank: it is asked for its header, and does not
    act, for a number of rounds that doubles with each failure in a row. The others act as before. When the
    link fails, another is made, together with the other ranks, and rounds go on over that. Where
    none can be made, or a rank is in another round, the thread ends. In every case the engine goes on.

    Args:
        interval_seconds, idle_seconds: the shortest and the longest pause between two rounds.
        step: reads the steps that this rank has ended. Never waits.
        lag_steps: a rank further behind the foremost is named in a WARNING; 0: never.
        span: opens spans of a timeline.
        on_failure: called with the name of a participant that failed and what it raised here, or a
            PeerFailedError where another rank failed. Must not raise.
        on_lost: called when the link failed, and at the end of the thread unless every rank had asked to
            close. Must not raise.
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
        on_failure: Callable[[str, BaseException], None] = lambda name, error: None,
        on_lost: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._link = link
        self._rank = link.rank
        self._relink: Relink | None = None
        self._generation = 0
        self._seats: list[Seat] = []
        words = _BASE_WORDS
        for number, participant in enumerate(participants):
            self._seats.append(Seat(participant, number, words))
            words += participant.header_words
        self._pauses = interval_seconds, max(interval_seconds, idle_seconds)
        self._step = step
        self._span = span
        self._on_failure = on_failure
        self._on_lost = on_lost
        self._words_W = np.zeros(words, np.int64)
        self._headers_GW = np.zeros((link.size, words), np.int64)
        self._lag_steps = lag_steps
        self._steps = StepWatch(lag_steps)
        # Open when somebody poked. A bare lock: releasing it cannot wait, as setting an Event could.
        self._gate = threading.Lock()
        self._gate.acquire()
        self._closing = False
        self._is_ending = False  # the interpreter is
        self._leaving = False
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
        busy = self._act()
        self._quiet = not (busy or headers_GW[:, _POKED].any())
        self.rounds += 1
        if not headers_GW[:, _CLOSING].all():
            return True
        self._steps.see_end(headers_GW[:, _STEP])
        return False

    def start(self, relink: Relink | None = None) -> None:
        """Starts the thread. Call once, on every rank; with ``relink`` it waits until all have. That makes
        the link of every generation, the first one too, so that a rank that loses one can let go of it:
        nothing else tells those that still wait in it. None: a link that broke is not replaced.

        Raises:
            LinkError: the first link could not be made.
        """
        self._relink = relink
        if relink is not None:
            link = relink(self._generation, lambda: True)
            assert link is not None, "it was to wait"
            self._link = link
        self._thread = threading.Thread(target=self._run, name="isotherm-heartbeat", daemon=True)
        _running.add(self)
        # Anew, so that it runs before the streams are ended, which rounds hand work to.
        atexit.unregister(_leave_all)
        atexit.register(_leave_all)
        self._thread.start()

    def leave(self, timeout_seconds: float) -> None:
        """For the end of the interpreter: ends the thread together with those of the other ranks, or, where
        they go on after ``timeout_seconds``, with its next round, as if the process had died before that."""
        if self._thread is None:
            return
        self._closing = self._is_ending = True
        self.poke()
        self._thread.join(timeout_seconds)
        self._leaving = True
        self._thread.join(timeout_seconds)

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
        try:
            while not self._make_rounds():
                if not self._rejoin():
                    return
        except BaseException as error:
            if not self._is_ending:
                logger.exception("isotherm: the heartbeat of rank %d stopped", self._link.rank)
            self._on_lost(error)

    def _make_rounds(self) -> bool:
        """Rounds until every rank has asked to close; False where the link broke and another can be made."""
        shortest, longest = self._pauses
        pause = shortest
        try:
            while self.beat() and not self._leaving:
                pause = min(2 * pause, longest) if self._quiet else shortest
                # A rank that closes is paced by those that do not.
                self._poked = self._gate.acquire(timeout=0 if self._closing else pause)
        except LinkError as error:
            if self._relink is None or self._closing:
                raise
            _drop_frames(error)
            logger.warning(
                "isotherm: rank %d lost its link to the others, and makes another with them: %s",
                self._link.rank,
                error,
            )
            self._on_lost(error)
            return False
        return True

    def _rejoin(self) -> bool:
        """Makes a link of the next generation on which every rank stands; False where this rank closes."""
        assert self._relink is not None, "there is a way to make one"
        pause = self._pauses[0]
        while True:
            self._link = LostLink(self._rank, self._link.size)  # the one before is closed
            self._generation += 1
            try:
                link = self._relink(self._generation, lambda: not self._closing)
                if link is None:
                    return False
                self._begin_anew(link)
            except LinkError as error:
                logger.debug("isotherm: generation %d: %s", self._generation, error)
                self._gate.acquire(timeout=0 if self._closing else pause)
                pause = min(2 * pause, self._pauses[1])
                continue
            logger.warning("isotherm: rank %d has a link to the others again", link.rank)
            return True

    def _begin_anew(self, link: Link) -> None:
        """Rounds over ``link``: what was known of failures is forgotten, what ranks must know alike is agreed
        on."""
        self._link = link
        self.rounds = int(link.all_gather(np.array([self.rounds], np.int64)).max())
        self._steps = StepWatch(self._lag_steps)
        for seat in self._seats:
            seat.forget()
            seat.participant.rejoin(link)

    def _fill_header(self) -> None:
        # Closing is read before the step: a rank that has asked to close ends no more steps.
        self._words_W[_CLOSING] = self._closing
        self._words_W[_STEP] = self._step()
        self._words_W[_ROUND] = self.rounds
        self._words_W[_POKED] = self._poked
        for seat in self._seats:
            try:
                self._words_W[seat.words] = seat.participant.header()
            except Exception as error:
                self._fail(seat, error)
        self._words_W[_FAILED] = sum(seat.bit for seat in self._seats if seat.error is not None)

    def _act(self) -> bool:
        """All that do not rest act, those behind one that raised too: on the other ranks they do."""
        busy = False
        for seat in self._seats:
            if seat.is_resting(self.rounds):
                continue
            seat.recover(self.rounds)
            try:
                busy |= bool(seat.participant.act(self._headers_GW[:, seat.words], self._link))
            except LinkError:
                raise
            except Exception as error:
                self._fail(seat, error)
        return busy

    def _fail(self, seat: Seat, error: Exception) -> None:
        if seat.error is None and not seat.streak:
            logger.error(
                "isotherm: %s of rank %d failed; the other ranks are told in the next round",
                seat.name,
                self._link.rank,
                exc_info=error,
            )
        seat.error = seat.error or error

    def _read_failures(self, failed_G: Int64Array) -> None:
        """What failed on any rank rests on all of them from this round on."""
        for seat in self._seats:
            ranks = np.flatnonzero(failed_G & seat.bit).tolist()
            if not ranks:
                continue
            own, seat.error = seat.error, None
            was_resting = seat.is_resting(self.rounds)
            seat.rest(self.rounds)
            named = ", ".join(map(str, ranks))
            if was_resting:
                continue
            if seat.streak == 1:
                logger.error("isotherm: %s of rank %s failed: it rests on every rank", seat.name, named)
            self._on_failure(seat.name, own or PeerFailedError(f"{seat.name} of rank {named} failed"))

    def _check_rounds(self, rounds_G: Int64Array) -> None:
        strangers = np.flatnonzero(rounds_G != self.rounds)
        if len(strangers):
            rank = int(strangers[0])
            raise ProtocolError(
                f"rank {rank} is in round {rounds_G[rank]}, rank {self._link.rank} in {self.rounds}: "
                "the group is used by somebody else too; give the balancer a group of its own"
            )


def _drop_frames(error: BaseException | None) -> None:
    """Whoever keeps the error, a log say, would keep the link open through its frames."""
    if error is not None:
        error.__traceback__ = None
        _drop_frames(error.__cause__)
        _drop_frames(error.__context__)


_running: weakref.WeakSet[Heartbeat] = weakref.WeakSet()


def _leave_all() -> None:
    """A thread that wakes up inside of a collective when the interpreter is gone brings the process down
    with a message of its own. So those that were not closed are ended first."""
    hearts = [heart for heart in _running if heart._thread is not None and heart._thread.is_alive()]
    for heart in hearts:
        heart.leave(_EXIT_SECONDS)
