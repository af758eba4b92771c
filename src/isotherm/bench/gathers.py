"""One gather at a time: what its calls take on main, and how long until the window is there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch.distributed as dist

from isotherm.bench.arms import reverted_heat
from isotherm.bench.clocks import quiet
from isotherm.bench.engine import EP2, TOKENS, SyntheticEngine
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.traffic import SHAPE
from isotherm.heat import HeatCollector
from isotherm.window import HeatWindow

GATHER_LIMIT = 0.01
"""What a gather may take from main, as a part of what the reverted design's takes."""

_NOTE = (
    "Rank 0 of two, which meet before each gather, so that no peer's delay is in it; both step meanwhile "
    "and share this machine's cores. end_step: the call that takes a snapshot, less the median of those "
    "that take none. snapshot to window: from the beginning of that call to on_window, on the side: copy, "
    "agreement, a sum of the heat, a gather of the loads; source='received' with 144 slots a rank, one "
    "slice a window, heartbeat of 0.02 s. reverted: its gather, called where the engine would."
)
_STEPS = 8
_WORK = 3  # layers of work in a step: a snapshot every 20 ms or so


@dataclass
class _Samples:
    """Of each call on main its wall and CPU time in microseconds; and by step when a snapshot was asked for
    and when its window came, in seconds."""

    quiet_us: list[tuple[float, float]] = field(default_factory=list)
    snapshot_us: list[tuple[float, float]] = field(default_factory=list)
    reverted_us: list[tuple[float, float]] = field(default_factory=list)
    asked: dict[int, float] = field(default_factory=dict)
    arrived: dict[int, float] = field(default_factory=dict)


def measure_gathers(*, quick: bool) -> Section:
    """Calls and latency of single gathers. Called on every rank."""
    samples = _Samples()
    engine = SyntheticEngine(dist.get_rank(), quick=quick)
    with _collector(samples) as collector, reverted_heat() as reverted, quiet():
        for step in range(1, _STEPS * (4 if quick else 120) + 1):
            _run_layers(engine, collector)
            if step % _STEPS:
                samples.quiet_us.append(_timed(lambda: collector.end_step(num_tokens=TOKENS)))
                continue
            dist.barrier()
            samples.asked[step] = time.perf_counter()
            samples.snapshot_us.append(_timed(lambda: collector.end_step(num_tokens=TOKENS)))
            # The next snapshot would overtake one that is late, and its latency would never be seen.
            while collector.gathered_step < step:
                engine.work()
            dist.barrier()
            samples.reverted_us.append(_timed(reverted.gather))
    return _section(samples)


@contextmanager
def _collector(samples: _Samples) -> Iterator[HeatCollector]:
    group = dist.new_group(backend="gloo")
    collector = HeatCollector(SHAPE, EP2, group, source="received", window_steps=_STEPS, slices=1)

    def note(window: HeatWindow) -> None:
        samples.arrived[window.end_step] = time.perf_counter()

    collector.on_window(note)
    try:
        yield collector
    finally:
        collector.close()


def _run_layers(engine: SyntheticEngine, collector: HeatCollector) -> None:
    batch = engine.begin_step()
    for layer in range(SHAPE.layers):
        if layer < _WORK:
            engine.work()
        collector.count(layer, engine.received[batch + layer])


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    """Microseconds of ``call``: on the wall, and of this thread's CPU time."""
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    call()
    cpu, wall = time.thread_time_ns() - cpu, time.perf_counter_ns() - wall
    return wall / 1e3, cpu / 1e3


def _section(samples: _Samples) -> Section:
    quiet_wall, quiet_cpu = np.median(samples.quiet_us, axis=0)
    ours = _call_figures("end_step with a snapshot", np.array(samples.snapshot_us) - (quiet_wall, quiet_cpu))
    theirs = _call_figures("reverted: gather", np.array(samples.reverted_us))
    milliseconds = [1e3 * (samples.arrived[step] - asked) for step, asked in samples.asked.items()]
    latency = Figure.with_tail("snapshot to window", "on the side", "ms", milliseconds)
    target = Target(
        "a gather's calls on main, HeatCollector / reverted, wall",
        ours[0].value / theirs[0].value,
        GATHER_LIMIT,
    )
    return Section("One gather", _NOTE, (*ours, *theirs, latency), (target,))


def _call_figures(row: str, samples_us: np.ndarray) -> tuple[Figure, Figure]:
    wall_us, cpu_us = samples_us.T.tolist()
    return Figure.of(row, "main, wall", "µs", wall_us), Figure.of(row, "main, CPU", "µs", cpu_us)
