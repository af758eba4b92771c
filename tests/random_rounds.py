"""Ranks that do anything at any time, to be run over any link: what they call must be the same."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import torch

from isotherm.control import Heartbeat, Transfer


@dataclass(frozen=True)
class Failure:
    """``rank`` raises in ``where`` ("header" or "act") of participant ``number`` in round ``at``."""

    rank: int
    number: int
    at: int
    where: str


@dataclass(frozen=True)
class Script:
    """One run. ``rounds`` of each rank until it closes; all else is drawn from ``seed``."""

    seed: int
    rounds: tuple[int, ...]
    failures: tuple[Failure, ...] = ()
    pause_seconds: float = 0.002


@dataclass
class Outcome:
    acted: list = field(default_factory=list)
    failures: list = field(default_factory=list)
    closed: bool = False
    rounds: int = 0
    raised_at: list = field(default_factory=list)


class RandomCalls:
    """Participant whose local state is drawn anew for each round, and decides what all ranks call."""

    header_words = 2

    def __init__(self, script, rank, number, outcome):
        self._script, self._rank, self._number, self._outcome = script, rank, number, outcome
        self._round = 0
        self._rng = np.random.default_rng([script.seed, rank, number])

    def header(self):
        self._sleep()
        self._fail("header")
        return self._rng.integers(0, 5), self._rng.integers(1, 50)

    def act(self, headers_GW, link):
        self._sleep()
        kinds, sizes = headers_GW.T.tolist()
        self._outcome.acted.append((self._round, self._number, kinds))
        size = sum(sizes)
        if 1 in kinds:
            array = np.full(size, link.rank, np.int64)
            link.all_reduce(array)
            assert (array == sum(range(link.size))).all()
        if 2 in kinds:
            source = kinds.index(2)
            data = bytes([source]) * size
            assert link.broadcast(data if link.rank == source else None, size, source) == data
        if kinds.count(3) > 1:
            rows = link.all_gather(np.full(sizes[0], link.rank, np.int32))
            assert (rows == np.arange(link.size, dtype=np.int32)[:, None]).all()
        if kinds.count(4) > 1 and link.size > 1:
            self._pass_on(link, size)
        self._fail("act")
        self._round += 1
        return kinds[0] == 1

    def _pass_on(self, link, size):
        """Each rank sends to the next."""
        before, behind = (link.rank - 1) % link.size, (link.rank + 1) % link.size
        sent = torch.full((size,), link.rank, dtype=torch.uint8)
        received = torch.empty_like(sent)
        link.exchange([Transfer(sent, behind, 0)], [Transfer(received, before, 0)])
        assert (received == before).all()

    def _fail(self, where):
        if Failure(self._rank, self._number, self._round, where) in self._script.failures:
            self._outcome.raised_at.append(self._round)
            self._round += where == "act"
            raise RuntimeError(f"rank {self._rank} fails in {where}")

    def _sleep(self):
        if self._rng.random() < 0.3:
            time.sleep(self._rng.random() * self._script.pause_seconds)


def run_script(script, link):
    """One rank's run: rounds on their own thread, pokes and a close from this one."""
    outcome = Outcome()
    heart = Heartbeat(
        link,
        [RandomCalls(script, link.rank, number, outcome) for number in range(2)],
        interval_seconds=script.pause_seconds / 4,
        idle_seconds=script.pause_seconds,
        on_failure=lambda name, error: outcome.failures.append(error),
    )
    heart.start()
    rng = np.random.default_rng([script.seed, link.rank, 99])
    deadline = time.monotonic() + 20
    pause = threading.Event()
    while heart.rounds < script.rounds[link.rank] and time.monotonic() < deadline:
        pause.wait(rng.random() * script.pause_seconds)
        if rng.random() < 0.3:
            heart.poke()
    outcome.closed = heart.close(20)
    outcome.rounds = heart.rounds
    return outcome


def check_outcomes(script, calls, outcomes):
    """Calls are the same on every rank, and so is what is known of failures."""
    first = outcomes[0]
    assert all(each == calls[0] for each in calls)
    assert all(outcome.closed for outcome in outcomes)
    assert {outcome.rounds for outcome in outcomes} == {first.rounds}
    assert first.rounds >= max(script.rounds)
    assert all(outcome.acted == first.acted for outcome in outcomes)
    raised = sum(len(outcome.raised_at) for outcome in outcomes)
    assert len({len(outcome.failures) for outcome in outcomes}) == 1, "told in other rounds"
    assert len(first.failures) <= raised
    # A header that raises is told in its own round, an act that raises in the next, if there is one.
    told = any(f.at + (f.where == "act") < first.rounds for f in script.failures)
    assert bool(first.failures) == bool(told and raised)
    # Without a failure everybody acts in every round.
    if not raised:
        assert len(first.acted) == 2 * first.rounds
