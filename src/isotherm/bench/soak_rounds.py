"""Rounds of the soak: something goes wrong, balancing comes back, and everything is looked at."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from isotherm.bench.ranks import RANKS
from isotherm.bench.soak_engine import SHAPE, SoakEngine
from isotherm.bench.soak_pairs import Pairs
from isotherm.bench.soak_strike import Strike
from isotherm.bench.soak_watch import num_threads, resident_bytes
from isotherm.status import State

_MEETING_STEPS = 8
"""Steps between two questions to the other ranks whether the round is over."""


@dataclass(frozen=True)
class RoundRecord:
    """What came of a round, the same on every rank.

    Attributes:
        mishap: what went wrong.
        wanted, struck_in: the state in which it was to happen, and the one that the rank concerned told when
            it did; None where nothing happened.
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
    wanted: State | None
    struck_in: State | None
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
        self._pairs = Pairs(seed)
        self._pause_seconds = pause_seconds
        self._give_up_seconds = give_up_seconds + pause_seconds

    def make_round(self, mishap: str) -> RoundRecord:
        """Lives through ``mishap``, and looks at everything. A collective."""
        engine, begun = self._engine, time.monotonic()
        before, first_step, wrong = engine.balancer.statistics(), engine.steps, engine.wrong_tokens
        wanted = self._pairs.next_state(mishap)
        strike = self._begin(mishap, wanted)
        recovered, told = self._live(strike, begun)
        struck_in = _known_to_all(strike.struck_in)
        if struck_in is not None:
            self._pairs.count(mishap, struck_in)
        engine.dawdle_seconds = engine.link.longest_seconds = 0.0
        unequal = len(engine.balancer.check_replicas())
        wrong_windows, windows = self._check_windows()
        after = engine.balancer.statistics()
        return RoundRecord(
            mishap,
            wanted,
            struck_in,
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

    def _begin(self, mishap: str, state: State | None) -> Strike:
        """Draws the rank that it happens on, and lets it happen."""
        rank = int(self._rng.integers(0, RANKS))
        # Rank 0 plans; and it alone may have a plan before the others have heard that it makes one.
        is_planned = mishap == "wrong digest" and state is not State.PLANNING
        if mishap.startswith("planner") or is_planned:
            rank = 0
        seconds = self._pause_seconds if mishap == "rank pauses" else self._give_up_seconds
        return Strike(self._engine, mishap, rank, state, seconds)

    def _live(self, strike: Strike, begun: float) -> tuple[bool, bool]:
        """Steps until it happened and weights have moved since: whether they did, and whether it was told."""
        engine, statistics = self._engine, self._engine.balancer.statistics()
        failed_before = strike.num_told(statistics.failures)
        happened, moves = False, None
        while True:
            if not happened:
                strike.usher_in()
            for _ in range(_MEETING_STEPS):
                statistics = engine.step()
                if not happened:
                    strike.see_step(statistics)
            happened = _any(strike.has_happened)
            told = strike.num_told(statistics.failures) > failed_before
            if moves is None and _every(happened and (told or not strike.must_be_told)):
                moves = statistics.moves
                strike.end()
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


def _known_to_all(state: State | None) -> State | None:
    """What one rank knows and the others do not."""
    states: list[State | None] = [None, *State]
    return states[_total(states.index(state))]


def _any(flag: bool) -> bool:
    return _total(int(flag)) > 0


def _every(flag: bool) -> bool:
    return _total(int(flag)) == RANKS


def _total(number: int) -> int:
    total = torch.tensor(number)
    dist.all_reduce(total)
    return int(total)
