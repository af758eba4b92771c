"""Rounds of the soak: something goes wrong, balancing comes back, and everything is looked at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch
import torch.distributed as dist

from isotherm.bench.ranks import RANKS
from isotherm.bench.soak_engine import SHAPE, SoakEngine
from isotherm.bench.soak_watch import num_threads, resident_bytes
from isotherm.status import State
from isotherm.testing.faults import Fault, What, fail_at

_MEETING_STEPS = 8
"""Steps between two questions to the other ranks whether the round is over."""

_CALM = "nothing"
_RELOADED = "weights replaced"
_SLOW_LINK = "slow link"
_DAWDLING = "slow rank"
MISHAPS = (*get_args(What), _RELOADED, _SLOW_LINK, _DAWDLING, _CALM)
"""What a round is about."""


@dataclass(frozen=True)
class RoundRecord:
    """What came of a round, the same on every rank.

    Attributes:
        mishap: what went wrong.
        recovered: weights moved again after it.
        told: it was counted as a failure; where it need not be (a pause shorter than a deadline), too.
        steps, seconds: how long the round took.
        moves, plans, windows: made in it.
        wrong_tokens: tokens whose output was not that of the engine without balancing, over all ranks.
        wrong_windows: windows whose counts were not those of the tokens that the ranks routed.
        unequal: replicas that were not equal at its end.
        rss_bytes, threads: of this process at its end; 0 bytes where the system does not tell.
    """

    mishap: str
    recovered: bool
    told: bool
    steps: int
    seconds: float
    moves: int
    plans: int
    windows: int
    wrong_tokens: int
    wrong_windows: int
    unequal: int
    rss_bytes: int
    threads: int


def draw_mishaps(seed: int) -> Iterator[str]:
    """What goes wrong round by round: all of `MISHAPS` in a random order, and then again in another."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(np.array(MISHAPS)).tolist()


class SoakRounds:
    """Makes rounds on this rank; with the same arguments on every rank.

    Args:
        pause_seconds: how long a rank is stopped. give_up_seconds: a round that takes longer is over, and
            has not recovered.
    """

    def __init__(
        self, engine: SoakEngine, seed: int, *, pause_seconds: float, give_up_seconds: float
    ) -> None:
        self._engine = engine
        self._rng = np.random.default_rng([seed, 1])
        self._pause_seconds = pause_seconds
        self._give_up_seconds = give_up_seconds + pause_seconds

    def make_round(self, mishap: str) -> RoundRecord:
        """Lives through ``mishap``, and looks at everything. A collective."""
        engine, begun = self._engine, time.monotonic()
        before, first_step, wrong = engine.balancer.statistics(), engine.steps, engine.wrong_tokens
        fault = self._begin(mishap)
        recovered, told = self._live(fault, begun)
        engine.dawdle_seconds = engine.link.longest_seconds = 0.0
        unequal = len(engine.balancer.check_replicas())
        wrong_windows, windows = self._check_windows()
        after = engine.balancer.statistics()
        return RoundRecord(
            mishap,
            recovered,
            told,
            engine.steps - first_step,
            time.monotonic() - begun,
            after.moves - before.moves,
            after.plans - before.plans,
            windows,
            _total(engine.wrong_tokens - wrong),
            wrong_windows,
            unequal,
            resident_bytes(),
            num_threads(),
        )

    def goes_on(self, flag: bool) -> bool:
        """Whether rank 0 says so."""
        return _any(self._engine.rank == 0 and flag)

    def _begin(self, mishap: str) -> Fault | None:
        """Draws the rank that it happens on, and lets it happen."""
        engine, rank = self._engine, int(self._rng.integers(0, RANKS))
        is_here = engine.rank == rank
        if mishap == _RELOADED:
            engine.reload()
        elif mishap == _SLOW_LINK:
            engine.link.longest_seconds = 0.02 * is_here
        elif mishap == _DAWDLING:
            engine.dawdle_seconds = 0.02 * is_here
        for what in get_args(What):
            if what == mishap:
                rank = 0 if what.startswith("planner") else rank
                seconds = self._pause_seconds if what == "rank pauses" else self._give_up_seconds
                fault = fail_at(rank, engine.steps + 1, what, seconds=seconds)
                fault.arm(engine.balancer)
                return fault
        return None

    def _live(self, fault: Fault | None, begun: float) -> tuple[bool, bool]:
        """Steps until it happened and weights have moved since: whether they did, and whether it was told.

        A rank that stops stops the engine too, whose ranks meet in every layer: so nothing need be told."""
        engine, statistics = self._engine, self._engine.balancer.statistics()
        failed_before = statistics.failures.total
        moves: int | None = None
        while True:
            for _ in range(_MEETING_STEPS):
                statistics = engine.step()
            told = statistics.failures.total > failed_before
            happened = fault is None or _any(fault.has_fired)
            must_be_told = fault is not None and fault.kind != "stalled"
            if moves is None and _every(happened and (told or not must_be_told)):
                moves = statistics.moves
                if fault is not None:
                    fault.end()
            since = moves is not None and statistics.moves > moves
            if _every(since and statistics.state is not State.DEGRADED):
                return True, told
            if _any(engine.rank == 0 and time.monotonic() - begun > self._give_up_seconds):
                return False, told

    def _check_windows(self) -> tuple[int, int]:
        """Windows that every rank has seen, of which (wrong, all). Where a link broke, some ranks may have
        seen one that others never will."""
        engine = self._engine
        wrong = checked = 0
        for start, end in self._seen_by_all():
            while engine.windows[0].end_step < end:
                engine.windows.popleft()
            window = engine.windows.popleft()
            for _ in range(start - engine.first_step):
                engine.counted.popleft()
            counted = torch.from_numpy(engine.counted[end - start] - engine.counted[0])
            dist.all_reduce(counted)
            seen_KLE = window.heat_KSLE.sum(axis=1)
            is_right = np.array_equal(seen_KLE, counted.numpy())
            is_right &= int(window.load_LG.sum()) == int(seen_KLE.sum())
            is_right &= int(window.tokens_K.sum()) * SHAPE.top_k == int(seen_KLE[:, 0].sum())
            for _ in range(end - start):
                engine.counted.popleft()
            engine.first_step = end
            wrong += not is_right
            checked += 1
        return wrong, checked

    def _seen_by_all(self) -> list[tuple[int, int]]:
        """(start, end) of the windows that are still to be looked at, and that every rank has seen."""
        mine = [(window.start_step, window.end_step) for window in tuple(self._engine.windows)]
        ranks = [mine] * RANKS
        dist.all_gather_object(ranks, mine)
        return sorted(set(ranks[0]).intersection(*ranks[1:]))


def _any(flag: bool) -> bool:
    return _total(int(flag)) > 0


def _every(flag: bool) -> bool:
    return _total(int(flag)) == RANKS


def _total(number: int) -> int:
    total = torch.tensor(number)
    dist.all_reduce(total)
    return int(total)
