"""One gather at a time: what it takes from main, in its call and behind it, and when its window comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import numpy as np
import torch.distributed as dist

from isotherm.arrays import FloatArray
from isotherm.balancer import Balancer
from isotherm.bench.arms import (
    Arm,
    balancer_arm,
    ids_arm,
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
from isotherm.window import HeatWindow

LIMIT = 0.01
"""What a gather may take from main, as a part of what the reverted design's takes."""

_NOTE = (
    "The end of a step that gathers minus the end of one that does nothing, interleaved, averaged over both "
    "ranks: the median, with its 95 % interval. The call: end_step, or the reverted design's gather. "
    "And after: with 25 ms of work behind it, so that whatever background threads take from the core "
    "and the interpreter's lock is included; two processes share this machine's cores, and the planner of "
    "rank 0 runs after a Balancer's. The ranks meet before each, so no peer's delay is in it. Every rank "
    "holds 144 slots, 16 times those of EP32. Until the window: from the call to on_window, median and p99, "
    "heartbeat of 0.02 s."
)
_WORK = 36
"""Layers of work behind a gather, 25 ms or so: as long as a gather takes on the side."""

_NOTHING, _RECEIVED, _IDS, _BALANCER, _REVERTED = (
    "nothing",
    "HeatCollector, received",
    "HeatCollector, ids",
    "Balancer",
    "reverted",
)
_COLUMNS = ("the call: wall", "the call: CPU", "and after: wall", "and after: CPU")


def measure_gathers(*, quick: bool) -> Section:
    """The end of a step that gathers, beside one that does nothing. Called on every rank."""
    engine = SyntheticEngine(dist.get_rank(), quick=quick)
    arrived: list[float] = []
    asked: list[float] = []

    def measure(arm: Arm) -> tuple[float, ...]:
        _run_layers(engine, arm)
        dist.barrier()
        if arm.name == _RECEIVED:
            asked.append(time.perf_counter())
        return _time_end(engine, arm)

    with _arms(engine, arrived) as arms:
        samples = take_turns(arms, 3 if quick else 80, measure)
    milliseconds = (1e3 * np.subtract(arrived, asked)).tolist()
    latency = Figure.with_tail(_RECEIVED, "until the window", "ms", milliseconds)
    figures = [figure for name in samples if name != _NOTHING for figure in _figures(name, samples)]
    return Section("One gather: what it takes from main", _NOTE, (*figures, latency), _targets(figures))


@contextmanager
def _arms(engine: SyntheticEngine, arrived: list[float]) -> Iterator[list[Arm]]:
    """Every step of theirs gathers."""
    config = Config(mode="observe", window_steps=1, slices=1)
    with ExitStack() as stack:
        received, ids = _collector("received"), _collector("ids")
        balancer = Balancer(SHAPE, EP2, group=dist.new_group(backend="gloo"), weights=None, config=config)
        for each in (received, ids, balancer):
            stack.callback(each.close)
        reverted = stack.enter_context(reverted_heat())

        def note(window: HeatWindow) -> None:
            arrived.append(time.perf_counter())

        received.on_window(note)
        yield [
            plain_arm(_NOTHING),
            received_arm(_RECEIVED, received, engine, snapshot_steps=1),
            ids_arm(_IDS, ids, engine, snapshot_steps=1),
            balancer_arm(_BALANCER, balancer, engine, mode="observe", snapshot_steps=1),
            reverted_arm(_REVERTED, reverted, engine, gather_steps=1),
        ]


def _collector(source: Literal["received", "ids"]) -> HeatCollector:
    group = dist.new_group(backend="gloo")
    collector = HeatCollector(SHAPE, EP2, group, source=source, window_steps=1, slices=1)
    collector.on_window(lambda window: None)
    return collector


def _run_layers(engine: SyntheticEngine, arm: Arm) -> None:
    """A step up to its end, which is what is measured."""
    batch = engine.begin_step()
    arm.begin_step()
    for layer in range(SHAPE.layers):
        arm.layer(layer, batch + layer)


def _time_end(engine: SyntheticEngine, arm: Arm) -> tuple[float, ...]:
    """Microseconds of the call that ends a step, wall and CPU, and with the work that follows."""
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    arm.end_step()
    call_cpu, call_wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    for _ in range(_WORK):
        engine.work()
    all_cpu, all_wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    return call_wall / 1e3, call_cpu / 1e3, all_wall / 1e3, all_cpu / 1e3


def _figures(name: str, samples: dict[str, FloatArray]) -> list[Figure]:
    differences = samples[name] - samples[_NOTHING]
    return [
        Figure.of_differences(name, column, "µs", values.tolist())
        for column, values in zip(_COLUMNS, differences.T, strict=True)
    ]


def _targets(figures: list[Figure]) -> tuple[Target, ...]:
    """Only in the call can a hundredth of the other be told from noise."""
    wall = {figure.row: figure.value for figure in figures if figure.column == _COLUMNS[0]}
    return tuple(
        Target(f"a gather's exposed time on main, {name} / reverted", wall[name] / wall[_REVERTED], LIMIT)
        for name in (_RECEIVED, _IDS, _BALANCER)
    )
