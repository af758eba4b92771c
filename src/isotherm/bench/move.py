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
from isotherm.bench.accounts import ACCOUNTS, read_accounts
from isotherm.bench.arms import Arm
from isotherm.bench.clocks import quiet
from isotherm.bench.engine import EP2, TOKENS
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
from isotherm.bench.move_steps import accounts_section, steps_section
from isotherm.bench.ranks import run_ranks
from isotherm.bench.traffic import SHAPE
from isotherm.bench.turns import take_turns
from isotherm.config import Config, Mode
from isotherm.hall.rooms import tables_of
from isotherm.status import State

_STEPS = 6
"""Steps with work in a block, and as many without."""
_COPY_STEPS = 8
_CLOCKS = ("begin and end", "mapping and counting", "torch.take")
_BEYOND = "both - torch.take"
_UNITS_MS = 1e-6

_NOTE = (
    "Two processes, 58 layers of 256 experts in 288 slots, 128 tokens a rank and step; plans of at most "
    f"{MOVES} moves of {BYTES_PER_EXPERT} bytes, {CONFIG.moves_in_flight} in flight, {PER_STEP} in a step. "
    "Blocks take turns, A B C C B A; ranks meet before a block. "
)
_CALLS_NOTE = _NOTE + (
    "CPU time of the engine's thread in Isotherm alone, in steps without work, averaged over both ranks: "
    "begin_step and end_step, which put tables in force and hand over, and route for 58 layers, which maps "
    "and counts. off maps too, and counts nothing. In the same steps, now before and now behind: torch.take "
    "of the same ids from a table for each layer, the look-up that an engine makes for any placement but "
    "experts in their own order, with us or without."
)
_STEPS_NOTE = _NOTE + f"Blocks of {_STEPS} steps. "
_WINDOWS_NOTE = (
    f"Observing and moving take a snapshot in {CONFIG.snapshot_steps} steps, gather it and think about it; "
    f"by default in {Config().snapshot_steps}."
)


@dataclass(frozen=True, eq=False)
class MoveRecord:
    """What the ranks measured together.

    Attributes:
        steps_ms, calls_ms, accounts_ms: by arm: wall time of steps, [turns, steps]; CPU time of the calls in
            a step, [all steps, `_CLOCKS`]; where a step's time went, [turns, `ACCOUNTS`].
        wire_bytes, planned_bytes: over all ranks and plans.
    """

    steps_ms: dict[str, FloatArray]
    accounts_ms: dict[str, FloatArray]
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
    sections = (
        _calls(record),
        steps_section(_STEPS_NOTE, record.steps_ms),
        accounts_section(_WINDOWS_NOTE, record.accounts_ms),
        _tables(record),
        _plans(record),
    )
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
    cuts = np.cumsum([_STEPS, len(ACCOUNTS)])
    blocks = {name: np.split(values, cuts, axis=1) for name, values in taken.items()}
    return MoveRecord(
        {name: steps for name, (steps, _, _) in blocks.items()},
        {name: accounts for name, (_, accounts, _) in blocks.items()},
        {name: calls.reshape(-1, len(_CLOCKS)) for name, (_, _, calls) in blocks.items()},
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
    """Milliseconds: of steps with work, wall; where they went, per step; of the calls of steps without."""
    steps, begun = [], read_accounts()
    for _ in range(_STEPS):
        step_begun = time.perf_counter_ns()
        batch = moving.begin_step()
        for layer in range(SHAPE.layers):
            moving.engine.work()
            moving.balancer.route(layer, moving.engine.ids[batch + layer])
        moving.balancer.end_step()
        steps.append((time.perf_counter_ns() - step_begun) * _UNITS_MS)
    accounts = (read_accounts() - begun) / _STEPS
    calls = [time_ms for number in range(_STEPS) for time_ms in _time_calls(moving, number % 2 == 0)]
    moving.note()
    return [*steps, *accounts, *calls]


def _time_calls(moving: MovingEngine, looks_up_first: bool) -> tuple[float, float, float]:
    """Milliseconds of CPU in a step without work, as `_CLOCKS` names them."""
    batch = moving.engine.begin_step()
    looked_up = _time_look_up(moving, batch) if looks_up_first else 0.0
    stamps = [time.thread_time_ns()]
    moving.balancer.begin_step(TOKENS, num_decode_tokens=TOKENS)
    stamps.append(time.thread_time_ns())
    moving.route_all(batch)
    stamps.append(time.thread_time_ns())
    moving.balancer.end_step()
    begin, mapped, end = np.diff([*stamps, time.thread_time_ns()]) * _UNITS_MS
    if not looks_up_first:
        looked_up = _time_look_up(moving, batch)
    return begin + end, mapped, looked_up


def _time_look_up(moving: MovingEngine, batch: int) -> float:
    """Milliseconds of CPU in which the slots of all layers are looked up, and nothing else."""
    begun = time.thread_time_ns()
    for layer in range(SHAPE.layers):
        torch.take(moving.plain_tables[layer], moving.engine.ids[batch + layer])
    return (time.thread_time_ns() - begun) * _UNITS_MS


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
    figures = []
    for name, samples_N3 in record.calls_ms.items():
        ends_N, maps_N, look_ups_N = samples_N3.T
        columns = dict(zip(_CLOCKS, samples_N3.T, strict=True))
        columns |= {"both": ends_N + maps_N, _BEYOND: ends_N + maps_N - look_ups_N}
        figures += [Figure.of(name, column, "ms", samples.tolist()) for column, samples in columns.items()]
    section = Section("Engine's thread in Isotherm, CPU time per step", _CALLS_NOTE, tuple(figures))
    targets = (
        Target(
            "begin_step and end_step while moving, CPU ms per step",
            section.figure("moving", _CLOCKS[0]).value,
            0.2,
        ),
        Target(
            "all calls of a step while moving, beyond torch.take of the same ids, CPU ms",
            section.figure("moving", _BEYOND).value,
            0.2,
        ),
        Target(
            "all calls of a step while moving, mapping included, CPU ms",
            section.figure("moving", "both").value,
            0.2,
        ),
        Target("bytes of weights copied on the engine's thread", record.copied_bytes, 0),
    )
    return replace(section, targets=targets)


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
