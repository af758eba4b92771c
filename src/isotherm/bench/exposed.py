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
from isotherm.bench.arms import Arm, balancer_arm, plain_arm, received_arm, reverted_arm, reverted_heat
from isotherm.bench.clocks import quiet
from isotherm.bench.engine import EP2, SyntheticEngine
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.traffic import SHAPE
from isotherm.bench.turns import take_turns
from isotherm.config import Config
from isotherm.heat import HeatCollector

_STEPS = 4
"""Steps in a block, and from one snapshot to the next: each block of an arm that gathers holds one."""

_OFFSET = _STEPS - 1
"""Steps before the first block: the snapshot ends the first step of a block, and its gather falls within."""

_NOTE = (
    "Steps of a synthetic engine (58 layers of about 0.7 ms, 128 tokens) in blocks of 4 that take turns, A "
    "B C C B A; differences of blocks of one turn, averaged over both ranks: the median, with its 95 % "
    "interval. A block with collection on holds one snapshot and its gather, one for 4 steps where the "
    "default is one for 128; ranks meet before a block, untimed. Wall time includes what heartbeats, the "
    "planner of rank 0 and the other process take from the cores and the interpreter's lock; CPU time is "
    "the main thread's alone. Balancer: on observes, off maps and counts nothing. HeatCollector and "
    "reverted: counts of 144 slots a rank; off is the engine alone."
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
            balancer = _measure(engine, arms, turns)
        with _received_arms(engine) as arms:
            received = _measure(engine, arms, turns)
    figures = [
        *_step_figures("engine alone, a step", received.of["off"]),
        *_difference_figures("Balancer", balancer, "on"),
        *_difference_figures("HeatCollector", received, "on"),
        *_difference_figures("reverted", received, "reverted"),
    ]
    section = Section("Engine steps: collection on minus off", _NOTE, tuple(figures))
    return replace(section, targets=_targets(section))


@contextmanager
def _balancer_arms(engine: SyntheticEngine) -> Iterator[list[Arm]]:
    group = dist.new_group(backend="gloo")
    config = Config(mode="off", window_steps=_STEPS, slices=1)
    balancer = Balancer(SHAPE, EP2, group=group, weights=None, config=config)
    try:
        yield [
            balancer_arm("off", balancer, engine, mode="off", snapshot_steps=_STEPS),
            balancer_arm("on", balancer, engine, mode="observe", snapshot_steps=_STEPS),
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
                plain_arm("off"),
                received_arm("on", collector, engine, snapshot_steps=_STEPS),
                reverted_arm("reverted", reverted, engine, gather_steps=_STEPS),
            ]
        finally:
            collector.close()


def _measure(engine: SyntheticEngine, arms: Sequence[Arm], turns: int) -> _Timings:
    # The arm that collects counts its steps; these bring its snapshot to the place in a block.
    arms[1].prepare()
    arms[1].run_steps(engine, _OFFSET)
    return _Timings(take_turns(arms, turns, lambda arm: _time_block(engine, arm)))


def _time_block(engine: SyntheticEngine, arm: Arm) -> tuple[float, float]:
    """Microseconds of a step, wall and CPU, in one block."""
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    arm.run_steps(engine, _STEPS)
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    return wall / _STEPS / 1e3, cpu / _STEPS / 1e3


def _step_figures(row: str, timings: FloatArray) -> list[Figure]:
    return [
        Figure.of(row, clock, "µs", values.tolist()) for clock, values in zip(_CLOCKS, timings.T, strict=True)
    ]


def _difference_figures(name: str, timings: _Timings, on: str) -> list[Figure]:
    rows = (
        (f"{name}: on - off, a step", "µs", timings.minus(on, "off")),
        (f"{name}: on - off, part of a step", "%", 100 * timings.relative(on, "off")),
    )
    return [
        Figure.of_differences(row, clock, unit, values.tolist())
        for row, unit, both in rows
        for clock, values in zip(_CLOCKS, both.T, strict=True)
    ]


def _targets(section: Section) -> tuple[Target, ...]:
    """A step is not distinguishable where the interval of its difference does not lie above 0."""
    return tuple(
        Target(
            f"a step's wall time, {name} on - off, lower end of the 95 % interval, %",
            section.figure(f"{name}: on - off, part of a step", "wall").low,
            0.0,
        )
        for name in ("Balancer", "HeatCollector")
    )
