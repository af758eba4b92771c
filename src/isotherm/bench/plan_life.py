"""What planning takes from the threads beside it, and what its first call takes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from isotherm import planner
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.plan_heat import Heats
from isotherm.planner import PlanRequest, make_plan
from isotherm.topology import Topology

GIL_MS = 2.0
CACHED_SECONDS = 1.5
FIRST_SECONDS = 30.0
_ROUNDS = 4000
"""Turns of the loop that the other thread makes: about 10 ms of Python."""

_NOTE = (
    "A plan as inside an engine: one thread, EP32+32, decode to prefill to .97. 'holds the GIL': its "
    "CPU time outside of compiled kernels. The other thread runs a fixed piece of Python again and "
    "again; 'delay per plan' is how much longer the same number of pieces takes while plans are made one "
    "after the other than without, divided by the plans made (median and 95 % interval of turns that "
    "alternate). It holds the GIL's own switching."
)
_NOTE_START = (
    "A new process: import isotherm, plan 58 x 256 at EP32+32, exit. 'cached': what numba compiled lies on "
    "disk; 'first ever': it does not. Wall time."
)
_PROGRAM = (
    "import numpy as np, isotherm as iso\n"
    "heat = np.exp(np.random.default_rng(0).normal(0, 0.7, (58, 256)))\n"
    "iso.plan(heat, iso.Topology.for_model(experts=256, redundant=32, ranks=32))\n"
)


def measure_other_threads(heats: Heats, *, quick: bool) -> Section:
    """CPU time that holds the interpreter, and the delay of another Python thread."""
    topology = Topology.for_model(experts=heats.first.shape[1], redundant=32, ranks=32)
    start = planner.plan(heats.first, topology, shares="even").placement
    request = PlanRequest(heats.far, topology, start, max_imbalance=1 / 0.97)

    def make() -> None:
        make_plan(request)

    make()
    held = [_held_ms(make) for _ in range(2 if quick else 15)]
    turns = [_turn(make) for _ in range(4 if quick else 40)]
    delays = [1e3 * (busy - alone) / max(1, made) for alone, busy, made, _ in turns]
    main = [1e2 * (cpu / alone - 1) for alone, _, _, cpu in turns]
    row = "one plan"
    figures = (
        Figure.of(row, "holds the GIL", "ms", held),
        Figure.of_differences(row, "delay per plan", "ms", delays),
        Figure.of_differences(row, "CPU of the other thread, with minus without", "%", main),
    )
    targets = (Target("a plan holds the GIL, ms", float(np.median(held)), GIL_MS),)
    return Section("What a plan takes from other threads", _NOTE, figures, targets)


def _held_ms(make: Callable[[], None]) -> float:
    with _timed_kernels() as inside:
        begun = time.thread_time()
        make()
        return 1e3 * (time.thread_time() - begun - inside[0])


@contextmanager
def _timed_kernels() -> Iterator[list[float]]:
    """Adds up the CPU time of the planner's kernels as Python calls them."""
    inside = [0.0]

    def timed(kernel: Any) -> Any:
        def call(*arguments: Any) -> Any:
            begun = time.thread_time()
            try:
                return kernel(*arguments)
            finally:
                inside[0] += time.thread_time() - begun

        return call

    modules = [module for name, module in sys.modules.items() if name.startswith("isotherm.planner")]
    kernels = [
        (module, name, value)
        for module in modules
        for name, value in vars(module).items()
        if hasattr(value, "py_func")
    ]
    for module, name, kernel in kernels:
        setattr(module, name, timed(kernel))
    try:
        yield inside
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)


def _turn(make: Callable[[], None]) -> tuple[float, float, int, float]:
    """Seconds of the fixed piece alone and beside plans, the plans made meanwhile, and its CPU time then."""
    alone, _ = _piece()
    stop, made = threading.Event(), [0]

    def keep_planning() -> None:
        while not stop.is_set():
            make()
            made[0] += 1

    thread = threading.Thread(target=keep_planning)
    thread.start()
    busy, cpu = _piece()
    stop.set()
    thread.join()
    return alone, busy, made[0], cpu


def _piece() -> tuple[float, float]:
    """Wall and CPU seconds of a fixed piece of Python."""
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in range(100):
        sum(range(_ROUNDS))
        [None for _ in range(_ROUNDS)]
    return time.perf_counter() - wall, time.thread_time() - cpu


def measure_start(*, quick: bool) -> Section:
    """Seconds of a process that plans once."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        first = [] if quick else [_seconds(environment)]
        cached = [_seconds({**os.environ} if quick else environment) for _ in range(1 if quick else 5)]
    figures = [Figure.of("cached", "seconds", "s", cached)]
    targets = [Target("first plan of a process, cached, s", float(np.median(cached)), CACHED_SECONDS)]
    if first:
        figures.append(Figure.of("first ever", "seconds", "s", first))
        targets.append(Target("first plan ever, s", first[0], FIRST_SECONDS))
    return Section("The first plan of a process", _NOTE_START, tuple(figures), tuple(targets))


def _seconds(environment: dict[str, str]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", _PROGRAM], env=environment, check=True, capture_output=True)
    return time.perf_counter() - begun
