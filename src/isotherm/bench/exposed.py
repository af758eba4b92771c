"""What collection takes from the engine's steps: on minus off, in blocks that take turns."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch.distributed as dist

from isotherm.arrays import FloatArray
from isotherm.balancer import Balancer
from isotherm.bench.arms import Arm, balancer_arm, collector_arm, plain_arm, reverted_arm, reverted_heat
from isotherm.bench.clocks import quiet
from isotherm.bench.engine import EP2, SyntheticEngine
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.gathers import GATHER_LIMIT
from isotherm.bench.traffic import SHAPE
from isotherm.config import Config
from isotherm.heat import HeatCollector

_STEPS = 4
"""Steps in a block, and from one snapshot to the next: each block of an arm that gathers holds one."""

_OFFSET = _STEPS - 1
"""Steps before the first block: the snapshot ends the first step of a block, and its gather falls within."""

_NOTE = (
    "Steps of a synthetic engine (58 layers of about 0.7 ms, 128 tokens) in blocks of 4 that take turns, A "
    "B C C B A; differences of blocks of one turn, averaged over both ranks: the median, with its 95 % "
    "interval. A gathering block holds one snapshot and its gather, one for 4 steps where the default is "
    "one for 128; ranks meet before a block, untimed. Wall time includes what heartbeats, the planner's "
    "thread of rank 0 and the other process take from the cores and the interpreter's lock; CPU time is the "
    "main thread's alone. Balancer: on observes, off maps and counts nothing. HeatCollector and reverted: "
    "counts of 144 slots a rank (16 times those of EP32); off is the engine alone."
)
_CLOCKS = ("wall", "CPU")


@dataclass(frozen=True)
class _Timings:
    """Microseconds of a step, wall and CPU, by arm: [blocks, 2]."""

    of: dict[str, FloatArray]

    def minus(self, arm: str, other: str) -> FloatArray:
        return self.of[arm] - self.of[other]

    def relative(self, arm: str, other: str) -> FloatArray:
        """Differences as parts of the median step of ``other``."""
        return self.minus(arm, other) / np.median(self.of[other], axis=0)


def measure_exposed(*, quick: bool) -> Section:
    """Differences of steps with collection and without. Called on every rank."""
    turns = 2 if quick else 20
    engine = SyntheticEngine(dist.get_rank(), quick=quick)
    with quiet():
        with _balancer_arms(engine) as arms:
            balancer = _take_turns(engine, arms, turns)
        with _received_arms(engine) as arms:
            received = _take_turns(engine, arms, turns)
    figures = [
        *_step_figures("engine alone", received.of["plain"]),
        *_of_pair("Balancer", balancer, "off", "count", "on"),
    ]
    figures += _of_pair("HeatCollector", received, "plain", "count", "on")
    figures += _of_pair("reverted", received, "plain", "reverted count", "reverted on")
    section = Section("Exposed on main: on minus off", _NOTE, tuple(figures))
    return replace(section, targets=_targets(section))


@contextmanager
def _balancer_arms(engine: SyntheticEngine) -> Iterator[list[Arm]]:
    group = dist.new_group(backend="gloo")
    config = Config(mode="off", window_steps=_STEPS, slices=1)
    balancer = Balancer(SHAPE, EP2, group=group, weights=None, config=config)
    try:
        yield [
            balancer_arm("off", "off", balancer, engine, _STEPS),
            balancer_arm("count", "count", balancer, engine, _STEPS),
            balancer_arm("on", "observe", balancer, engine, _STEPS),
        ]
    finally:
        balancer.close()


@contextmanager
def _received_arms(engine: SyntheticEngine) -> Iterator[list[Arm]]:
    group = dist.new_group(backend="gloo")
    collector = HeatCollector(SHAPE, EP2, group, source="received", window_steps=_STEPS, slices=1)
    collector.on_window(lambda window: None)
    with reverted_heat() as reverted:
        try:
            yield [
                collector_arm("count", collector, engine, snapshots=False, snapshot_steps=_STEPS),
                plain_arm(),
                collector_arm("on", collector, engine, snapshots=True, snapshot_steps=_STEPS),
                reverted_arm("reverted count", reverted, engine, gather_steps=None),
                reverted_arm("reverted on", reverted, engine, gather_steps=_STEPS),
            ]
        finally:
            collector.close()


def _take_turns(engine: SyntheticEngine, arms: Sequence[Arm], turns: int) -> _Timings:
    arms[0].prepare()
    arms[0].run_steps(engine, _OFFSET)
    mine: dict[str, list[tuple[float, float]]] = {arm.name: [] for arm in arms}
    for turn in range(-1, turns):  # the first warms up
        for arm in arms if turn % 2 else reversed(arms):
            timing = _time_block(engine, arm)
            if turn >= 0:
                mine[arm.name].append(timing)
    ranks: list[dict[str, list[tuple[float, float]]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, mine)
    return _Timings({name: np.mean([rank[name] for rank in ranks], axis=0) for name in mine})


def _time_block(engine: SyntheticEngine, arm: Arm) -> tuple[float, float]:
    """Microseconds of a step, wall and CPU, in one block."""
    arm.prepare()
    dist.barrier()
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    arm.run_steps(engine, _STEPS)
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    arm.settle()
    return wall / _STEPS / 1e3, cpu / _STEPS / 1e3


def _step_figures(row: str, timings: FloatArray) -> list[Figure]:
    return [
        Figure.of(f"{row}, a step", clock, "µs", values.tolist())
        for clock, values in zip(_CLOCKS, timings.T, strict=True)
    ]


def _of_pair(name: str, timings: _Timings, off: str, count: str, on: str) -> list[Figure]:
    """What counting, all of collection, and a gather take."""
    rows = (
        (f"{name}: on - off, a step", "µs", timings.minus(on, off)),
        (f"{name}: on - off, part of a step", "%", 100 * timings.relative(on, off)),
        (f"{name}: counting alone - off, a step", "µs", timings.minus(count, off)),
        (f"{name}: a gather", "µs", _STEPS * timings.minus(on, count)),
    )
    return [
        Figure.of_differences(row, clock, unit, values.tolist())
        for row, unit, both in rows
        for clock, values in zip(_CLOCKS, both.T, strict=True)
    ]


def _targets(section: Section) -> tuple[Target, ...]:
    """A step is not distinguishable where the interval of its difference does not lie above 0."""
    targets = [
        Target(
            f"a step's wall time, {name} on - off, lower end of the 95 % interval, %",
            section.figure(f"{name}: on - off, part of a step", "wall").low,
            0.0,
        )
        for name in ("Balancer", "HeatCollector")
    ]
    ours, theirs = (
        section.figure(f"{name}: a gather", "wall").value for name in ("HeatCollector", "reverted")
    )
    name = "a gather's exposed wall time (on - off), HeatCollector / reverted"
    return (*targets, Target(name, ours / theirs, GATHER_LIMIT))
