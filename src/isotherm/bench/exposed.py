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
from isotherm.bench.arms import (
    Arm,
    balancer_arm,
    counting_arm,
    plain_arm,
    received_arm,
    reverted_arm,
    reverted_heat,
)
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
    "B C C B A; differences within a turn, averaged over both ranks: the median, with its 95 % interval. A "
    "block with collection on holds one snapshot and its gather; ranks meet before a block, untimed. A "
    "snapshot in 128 steps, the default: counting, and a 32nd of what the gather adds to a block. Wall time "
    "includes what heartbeats, the planner of rank 0 and the other process take from the cores and the "
    "interpreter's lock; CPU time is the main thread's alone. Balancer: on observes, off maps and counts "
    "nothing. HeatCollector and reverted: counts of 144 slots a rank, 16 times those of EP32; off is the "
    "engine alone."
)
_CLOCKS = ("wall", "CPU")


@dataclass(frozen=True)
class StepTimings:
    """Microseconds of a step, wall and CPU, by arm: [turns, 2]."""

    of: dict[str, FloatArray]

    @property
    def off(self) -> FloatArray:
        """The median step without collection, wall and CPU."""
        middle: FloatArray = np.median(self.of["off"], axis=0)
        return middle

    def minus(self, arm: str, other: str) -> FloatArray:
        """Differences within a turn."""
        return self.of[arm] - self.of[other]

    @property
    def as_by_default(self) -> FloatArray:
        """Collection on minus off with one snapshot for as many steps as by default: counting, and the part
        of a gather that falls on a step then."""
        return self.minus("counting", "off") + self.minus("on", "counting") * _STEPS / Config().snapshot_steps


def measure_exposed(*, quick: bool) -> Section:
    """Differences of steps with collection and without. Called on every rank."""
    turns = 2 if quick else 20
    engine = SyntheticEngine(dist.get_rank(), quick=quick)
    with _balancer_arms(engine) as arms:
        balancer = _measure(engine, arms, turns)
    with _received_arms(engine) as arms:
        received = _measure(engine, arms, turns)
    figures = [
        *_step_figures("engine alone", received.of["off"]),
        *_difference_figures("Balancer", balancer),
        *_difference_figures("HeatCollector", received),
        *_figures("reverted: on - off", received.minus("reverted", "off"), received.off),
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
            balancer_arm("counting", balancer, engine, mode="count", snapshot_steps=_STEPS),
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
                counting_arm("counting", collector, engine),
                received_arm("on", collector, engine, snapshot_steps=_STEPS),
                reverted_arm("reverted", reverted, engine, gather_steps=_STEPS),
            ]
        finally:
            collector.close()


def _measure(engine: SyntheticEngine, arms: Sequence[Arm], turns: int) -> StepTimings:
    # The arm that collects counts its steps; these bring its snapshot to the place in a block.
    arms[1].prepare()
    arms[1].run_steps(engine, _OFFSET)
    return StepTimings(take_turns(arms, turns, lambda arm: _time_block(engine, arm)))


def _time_block(engine: SyntheticEngine, arm: Arm) -> tuple[float, float]:
    """Microseconds of a step, wall and CPU, in one block."""
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    arm.run_steps(engine, _STEPS)
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    return wall / _STEPS / 1e3, cpu / _STEPS / 1e3


def _step_figures(row: str, timings: FloatArray) -> list[Figure]:
    return [
        Figure.of(row, f"{clock}, a step", "µs", values.tolist())
        for clock, values in zip(_CLOCKS, timings.T, strict=True)
    ]


def _difference_figures(name: str, timings: StepTimings) -> list[Figure]:
    return [
        *_figures(f"{name}: counting - off", timings.minus("counting", "off"), timings.off),
        *_figures(f"{name}: on - off, a snapshot in 4 steps", timings.minus("on", "off"), timings.off),
        *_figures(_by_default(name), timings.as_by_default, timings.off),
    ]


def _by_default(name: str) -> str:
    return f"{name}: on - off, a snapshot in {Config().snapshot_steps} steps"


def _figures(row: str, differences: FloatArray, off: FloatArray) -> list[Figure]:
    """Differences as they are, and as parts of a step without collection."""
    figures = []
    for clock, values, step in zip(_CLOCKS, differences.T, off, strict=True):
        figures.append(Figure.of_differences(row, f"{clock}, a step", "µs", values.tolist()))
        figures.append(Figure.of_differences(row, f"{clock}, of a step", "%", (100 * values / step).tolist()))
    return figures


def _targets(section: Section) -> tuple[Target, ...]:
    """A step is not distinguishable where the interval of its difference does not lie above 0."""
    return tuple(
        Target(
            f"a step's wall time, {name} on - off, lower end of the 95 % interval, %",
            section.figure(_by_default(name), "wall, of a step").low,
            0.0,
        )
        for name in ("Balancer", "HeatCollector")
    )
