"""What moving weights takes from the engine, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from isotherm import planner, router
from isotherm.arrays import FloatArray
from isotherm.bench.arms import Arm
from isotherm.bench.clocks import quiet
from isotherm.bench.engine import EP2
from isotherm.bench.figures import Figure, Report, Section, Target
from isotherm.bench.machine import describe_machine
from isotherm.bench.move_engine import (
    BYTES_PER_EXPERT,
    CONFIG,
    MOVES,
    PER_STEP,
    MovingEngine,
    Published,
    WeightCopies,
)
from isotherm.bench.ranks import run_ranks
from isotherm.bench.traffic import SHAPE
from isotherm.bench.turns import take_turns
from isotherm.config import Mode
from isotherm.hall.rooms import tables_of
from isotherm.status import State

_STEPS = 6
"""Steps with work in a block, and as many without."""
_COPY_STEPS = 8
_CLOCKS = ("begin and end", "mapping and counting")
_UNITS_MS = 1e-6

_NOTE = (
    "Two processes, 58 layers of 256 experts in 288 slots, 128 tokens a rank and step; plans of at most "
    f"{MOVES} moves of {BYTES_PER_EXPERT} bytes, {CONFIG.moves_in_flight} in flight, {PER_STEP} in a step. "
    "Blocks take turns, A B C C B A; ranks meet before a block. "
)
_CALLS_NOTE = _NOTE + (
    "CPU time of the engine's thread in Isotherm alone, averaged over both ranks: begin_step and end_step, "
    "which put tables in force and hand over, and route for 58 layers, which maps and counts (held to "
    "torch.take by `isotherm bench heat`). off maps too, and counts nothing."
)
_STEPS_NOTE = _NOTE + (
    f"Blocks of {_STEPS} steps with work of about 40 ms; differences are those of the blocks' medians "
    "within a turn. Moving shares the cores with the heartbeat, the planner, the carrier and gloo of both "
    "processes; on two cores with two engines none is left over for them."
)


@dataclass(frozen=True, eq=False)
class MoveRecord:
    """What the ranks measured together. ``wire_bytes``, ``planned_bytes``: over all ranks and plans."""

    steps_ms: dict[str, FloatArray]
    calls_ms: dict[str, FloatArray]
    build_ms: list[float]
    load_ms: list[float]
    copied_bytes: int
    published: list[Published]
    wire_bytes: int
    planned_bytes: int


def measure_moving(*, quick: bool, tell: Callable[[str], None]) -> Report:
    """What moving takes on this machine; ``tell`` hears what is measured next. ``quick``: a few samples.

    Raises:
        RuntimeError: a process of the benchmark failed; the message holds its traceback.
    """
    begun, machine = time.monotonic(), describe_machine()
    planner.warm_up()
    router.warm_up()
    tell("two processes: steps with balancing off, observing and moving, in turns ...")
    record = run_ranks(measure_on_ranks, quick)
    sections = (_calls(record), _steps(record), _tables(record), _plans(record))
    return Report("move", machine, time.monotonic() - begun, sections)


def measure_on_ranks(quick: bool) -> MoveRecord:
    """Everything that takes two processes. Called on every rank."""
    moving = MovingEngine(quick=quick)
    with quiet():
        taken = take_turns(_arms(moving), 2 if quick else 12, lambda arm: _time_block(moving))
        moving.balancer.set_mode("full")
        moving.step_until(State.MOVING)
        copied = _copied_bytes(moving)
        moving.balancer.set_mode("off")
        moving.step_until(State.OBSERVING)
        moving.balancer.close()
        build_ms, load_ms = _time_tables(moving, 10 if quick else 100)
    planned = sum(each.moves for each in moving.published) * BYTES_PER_EXPERT
    totals = torch.tensor([moving.link.weight_bytes, planned, copied])
    dist.all_reduce(totals)
    wire, planned, copied = totals.tolist()
    blocks = {name: values.reshape(len(values), 3, _STEPS) for name, values in taken.items()}
    return MoveRecord(
        {name: values[:, 0] for name, values in blocks.items()},
        {name: values[:, 1:].transpose(0, 2, 1).reshape(-1, 2) for name, values in blocks.items()},
        build_ms,
        load_ms,
        copied,
        moving.published,
        wire,
        planned,
    )


def _arms(moving: MovingEngine) -> list[Arm]:
    modes: dict[str, Mode] = {"off": "off", "observing": "observe", "moving": "full"}

    def prepare(mode: Mode) -> None:
        moving.balancer.set_mode(mode)
        if mode == "full":
            moving.step_until(State.MOVING)

    def settle() -> None:
        moving.balancer.set_mode("off")
        moving.step_until(State.OBSERVING)

    return [
        Arm(name, lambda layer, batch: None, prepare=partial(prepare, mode), settle=settle)
        for name, mode in modes.items()
    ]


def _time_block(moving: MovingEngine) -> list[float]:
    """Milliseconds: of steps with work, wall; then of steps without, CPU: beginning and ending; mapping."""
    steps, ends, maps = [], [], []
    for _ in range(_STEPS):
        begun = time.perf_counter_ns()
        batch = moving.begin_step()
        for layer in range(SHAPE.layers):
            moving.engine.work()
            moving.balancer.route(layer, moving.engine.ids[batch + layer])
        moving.balancer.end_step()
        steps.append((time.perf_counter_ns() - begun) * _UNITS_MS)
    for _ in range(_STEPS):
        stamps = [time.thread_time_ns()]
        batch = moving.begin_step()
        stamps.append(time.thread_time_ns())
        moving.route_all(batch)
        stamps.append(time.thread_time_ns())
        moving.balancer.end_step()
        begin, middle, end = np.diff([*stamps, time.thread_time_ns()]) * _UNITS_MS
        ends.append(begin + end)
        maps.append(middle)
    moving.note()
    return [*steps, *ends, *maps]


def _copied_bytes(moving: MovingEngine) -> int:
    """Bytes of weights that the engine's thread writes while they move."""
    with WeightCopies([tensor for layer in moving.weights for tensor in layer.values()]) as copies:
        for _ in range(_COPY_STEPS):
            moving.idle_step()
    return int(copies.written_bytes)


def _time_tables(moving: MovingEngine, times: int) -> tuple[list[float], list[float]]:
    """Milliseconds of CPU for tables of all layers: built on the heartbeat's thread, and put in force on the
    engine's. The heartbeat has ended, so this thread may be both."""
    rooms, ledger = moving.balancer._rooms, moving.balancer._loop.mover.ledger
    build_ms, load_ms = [], []
    for epoch in range(ledger.epoch + 1, ledger.epoch + 1 + times):
        stamps = [time.thread_time_ns()]
        tables = tables_of(ledger, SHAPE)
        stamps.append(time.thread_time_ns())
        rooms.shelf.leave(epoch, tables)
        stamps.append(time.thread_time_ns())
        rooms.shelf.load_newest()
        built, left, loaded = np.diff([*stamps, time.thread_time_ns()]) * _UNITS_MS
        build_ms.append(float(built + left))
        load_ms.append(float(loaded))
    return build_ms, load_ms


def _calls(record: MoveRecord) -> Section:
    figures, medians = [], {}
    for name, samples_N2 in record.calls_ms.items():
        for column, samples in zip(_CLOCKS, samples_N2.T, strict=True):
            figures.append(Figure.of(name, column, "ms", samples.tolist()))
        both = Figure.of(name, "both", "ms", samples_N2.sum(axis=1).tolist())
        figures.append(both)
        medians[name] = both.value
    section = Section("Engine's thread in Isotherm, CPU time per step", _CALLS_NOTE, tuple(figures))
    targets = (
        Target(
            "begin_step and end_step while moving, CPU ms per step",
            section.figure("moving", _CLOCKS[0]).value,
            0.2,
        ),
        Target("all calls of a step while moving, mapping included, CPU ms", medians["moving"], 0.2),
        Target("bytes of weights copied on the engine's thread", record.copied_bytes, 0),
    )
    return replace(section, targets=targets)


def _steps(record: MoveRecord) -> Section:
    figures = [
        Figure.with_tail(name, "a step", "ms", samples.ravel().tolist())
        for name, samples in record.steps_ms.items()
    ]
    blocks = {name: np.median(samples, axis=1) for name, samples in record.steps_ms.items()}
    for name in ("observing", "moving"):
        differences = blocks[name] - blocks["off"]
        figures.append(Figure.of_differences(name, "minus off", "ms", differences.tolist()))
        parts = 100 * differences / np.median(blocks["off"])
        figures.append(Figure.of_differences(name, "minus off, of a step", "%", parts.tolist()))
    section = Section("Engine's steps, wall time", _STEPS_NOTE, tuple(figures))
    lowest = section.figure("moving", "minus off, of a step").low
    target = Target("a step's wall time, moving - off, lower end of the 95 % interval, %", lowest, 0.0)
    return replace(section, targets=(target,))


def _tables(record: MoveRecord) -> Section:
    note = (
        f"CPU time for {SHAPE.layers} layers, {EP2.slots} slots each: built and staged on the heartbeat's "
        "thread, loaded on the engine's, at the beginning of a step."
    )
    build = Figure.of("all layers", "built and staged", "ms", record.build_ms)
    load = Figure.of("all layers", "put in force", "ms", record.load_ms)
    target = Target("tables of all layers rebuilt and in force, CPU ms", build.value + load.value, 2.0)
    return Section("Tables of a new epoch", note, (build, load), (target,))


def _plans(record: MoveRecord) -> Section:
    note = (
        "From the decision until every rank has published the last expert, in steps of next to no work, at "
        f"the budget of {PER_STEP} experts a step. Bytes that links carried, of both ranks and all plans."
    )
    figures = [
        Figure.of("a plan", "moves", "", [each.moves for each in record.published]),
        Figure.of("a plan", "steps until published", "", [each.steps for each in record.published]),
        Figure.exact("all plans", "planned", "B", record.planned_bytes),
        Figure.exact("all plans", "on the wire", "B", record.wire_bytes),
    ]
    unplanned = abs(record.wire_bytes - record.planned_bytes)
    target = Target("bytes on the wire beyond or short of the plans'", unplanned, 0)
    return Section("Plans carried out", note, tuple(figures), (target,))
