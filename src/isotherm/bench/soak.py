"""Hours of a night in minutes: shifting traffic, random faults, and everything looked at after each."""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch.distributed as dist

from isotherm import planner, router
from isotherm.bench.figures import Figure, Report, Section, Target
from isotherm.bench.machine import describe_machine
from isotherm.bench.ranks import RANKS, run_ranks
from isotherm.bench.soak_engine import SoakEngine
from isotherm.bench.soak_pairs import MISHAPS, draw_mishaps, states_of, why_never
from isotherm.bench.soak_rounds import RoundRecord, SoakRounds
from isotherm.bench.soak_strike import PATIENCE_STEPS
from isotherm.bench.soak_watch import num_threads
from isotherm.status import Failures, State, Statistics

_TELL_SECONDS = 10.0
_GIVE_UP_SECONDS = 60.0
_GROWTH_BYTES = 16 * 2**20
"""What allocators may keep: memory that is lost in every round, or step, is more in a few minutes."""

_NOTE = (
    f"{RANKS} processes, 3 layers of 16 experts in 20 slots, 1 to 32 tokens a step and rank; another expert "
    "becomes hot every 24 steps. A round: something goes wrong on a random rank, in the state that it has "
    "met least so far; steps are made until weights moved again, and then all replicas are compared, and all "
    "windows with what the ranks counted themselves. Each token of every step is compared with the same "
    "engine without balancing, bit for bit."
)
_STATES_NOTE = (
    "How often what went wrong met which state: that which the rank concerned told at that moment. A state "
    f"is waited for up to {PATIENCE_STEPS} steps; missed: it did not come, or was gone before all ranks had "
    "heard of it, and another was met. While degraded: another failure came before. A transfer that fails "
    "in another state than moving is late until that comes. A digest can be wrong while rank 0 tells "
    "observing or degraded where its plan is made before others hear that it plans, between two rounds. "
    "Empty: cannot be. "
) + why_never()


@dataclass(frozen=True)
class SoakRecord:
    """What one rank saw. ``threads_left``: threads beyond those after the first round, once late planners had
    returned."""

    rounds: tuple[RoundRecord, ...]
    statistics: Statistics
    tokens: int
    threads_left: int


def measure_soak(
    minutes: float, seed: int | None, pause_seconds: float, tell: Callable[[str], None]
) -> Report:
    """Runs the soak for ``minutes``; ``tell`` hears the seed, with which what is drawn is drawn again.

    Raises:
        ValueError: no time to run, or a pause of no length.
        RuntimeError: a process ended or raised; the message holds its traceback.
    """
    for name, value in (("minutes", minutes), ("pause_seconds", pause_seconds)):
        if not value > 0:
            raise ValueError(f"{name}={value} must be above 0")
    seed = secrets.randbelow(2**31) if seed is None else seed
    begun, machine = time.monotonic(), {**describe_machine(), "seed": str(seed)}
    planner.warm_up()
    router.warm_up()
    tell(f"{RANKS} processes for {minutes:g} minutes; to draw the same again: --seed {seed}")
    record = run_ranks(soak_on_ranks, 60 * minutes, seed, pause_seconds)
    return Report(
        "soak", machine, time.monotonic() - begun, (_mishaps(record), _states(record), _work(record))
    )


def soak_on_ranks(seconds: float, seed: int, pause_seconds: float) -> SoakRecord:
    """Lives through mishaps for ``seconds``. Called on every rank."""
    # Tracebacks of faults on purpose would fill the terminal.
    logging.getLogger("isotherm").setLevel(logging.CRITICAL)
    engine = SoakEngine(seed)
    rounds = SoakRounds(engine, seed, pause_seconds=pause_seconds, give_up_seconds=_GIVE_UP_SECONDS)
    records: list[RoundRecord] = []
    begun = told = time.monotonic()
    for mishap in draw_mishaps(seed):
        records.append(rounds.make_round(mishap))
        if engine.rank == 0 and time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            sys.stderr.write(f"{told - begun:.0f} s: {_told(records)}\n")
        if not rounds.goes_on(time.monotonic() - begun < seconds):
            break
    left = _threads_left(records[0].threads)
    statistics = engine.balancer.statistics()
    engine.close()
    return _of_all_ranks(SoakRecord(tuple(records), statistics, engine.tokens, left))


def _told(records: Sequence[RoundRecord]) -> str:
    return f"{len(records)} rounds, {sum(r.moves for r in records)} moves, last: {records[-1].mishap}"


def _threads_left(at_first: int) -> int:
    """Waits for planners that were left behind."""
    deadline = time.monotonic() + 10
    while num_threads() > at_first and time.monotonic() < deadline:
        time.sleep(0.05)
    return max(num_threads() - at_first, 0)


def _of_all_ranks(mine: SoakRecord) -> SoakRecord:
    """Rank 0's record with what only one rank knows of itself: the worst of all ranks, and all tokens."""
    records: list[SoakRecord] = [mine] * RANKS
    dist.all_gather_object(records, mine)
    growing = max(records, key=lambda record: _growth_bytes(record.rounds))
    waits = sum(record.statistics.waits for record in records)
    return replace(
        records[0],
        rounds=tuple(
            replace(ours, rss_bytes=theirs.rss_bytes)
            for ours, theirs in zip(records[0].rounds, growing.rounds, strict=True)
        ),
        statistics=replace(records[0].statistics, waits=waits),
        tokens=sum(record.tokens for record in records),
        threads_left=max(record.threads_left for record in records),
    )


def _growth_bytes(rounds: Sequence[RoundRecord]) -> int:
    """From the second quarter of the rounds to the last: medians."""
    quarter = max(len(rounds) // 4, 1)
    early = [each.rss_bytes for each in rounds[quarter : 2 * quarter] or rounds[:1]]
    late = [each.rss_bytes for each in rounds[-quarter:]]
    return int(np.median(late) - np.median(early))


def _mishaps(record: SoakRecord) -> Section:
    """What went wrong, and what was wrong then."""
    figures = []
    for mishap in MISHAPS:
        rounds = [each for each in record.rounds if each.mishap == mishap]
        if rounds:
            figures += [
                Figure.exact(mishap, "rounds", "", len(rounds)),
                Figure.exact(mishap, "recovered", "", sum(each.recovered for each in rounds)),
                Figure.exact(mishap, "told", "", sum(each.told for each in rounds)),
                Figure.of(mishap, "until weights moved again", "s", [each.seconds for each in rounds]),
                Figure.of(mishap, "steps", "", [each.steps for each in rounds]),
            ]
    rounds = list(record.rounds)
    targets = (
        Target("tokens unlike those without balancing", sum(each.wrong_tokens for each in rounds), 0),
        Target("windows with wrong counts", sum(each.wrong_windows for each in rounds), 0),
        Target("replicas that were not equal", sum(each.unequal for each in rounds), 0),
        Target("rounds after which weights did not move", sum(not each.recovered for each in rounds), 0),
        Target("waits on the forward path", record.statistics.waits, 0),
        Target("threads more than at first", record.threads_left, 0),
        Target("bytes of memory more, late than early", _growth_bytes(rounds), _GROWTH_BYTES),
    )
    return Section("Rounds", _NOTE, tuple(figures), targets)


def _states(record: SoakRecord) -> Section:
    """What went wrong in which state."""
    met = Counter((each.mishap, each.struck_in) for each in record.rounds)
    missed = Counter(each.mishap for each in record.rounds if each.struck_in is not each.wanted)
    rounds = Counter(each.mishap for each in record.rounds)
    mishaps = [mishap for mishap in MISHAPS if states_of(mishap)]
    figures = [Figure.exact(mishap, "rounds", "", rounds[mishap]) for mishap in mishaps]
    pairs = [(mishap, state) for state in State for mishap in mishaps if state in states_of(mishap)]
    figures += [Figure.exact(mishap, state.value, "", met[mishap, state]) for mishap, state in pairs]
    figures += [Figure.exact(mishap, "missed", "", missed[mishap]) for mishap in mishaps]
    hit = sum(met[pair] > 0 for pair in pairs)
    note = f"{hit} of {len(pairs)} pairs that can be were met. {_STATES_NOTE}"
    return Section("Met in which state", note, tuple(figures))


def _work(record: SoakRecord) -> Section:
    """What was done meanwhile."""
    statistics, rounds = record.statistics, record.rounds
    done = {
        "steps": statistics.steps,
        "tokens": record.tokens,
        "windows checked": sum(each.windows for each in rounds),
        "plans": statistics.plans,
        "moves": statistics.moves,
        "rounds of the heartbeat": statistics.rounds,
    }
    failures = Counter(statistics.failures.as_dict()) - Counter(Failures().as_dict())
    figures = [Figure.exact(name, "number", "", value) for name, value in done.items()]
    figures += [Figure.exact(f"failures: {kind}", "number", "", count) for kind, count in failures.items()]
    return Section("Done meanwhile", "Failures are those that this rank was told of.", tuple(figures))
