"""Isotherm's own code under many schedules; and mutants of it, each with the finding that catches it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable

import pytest
import torch

from isotherm.control import Link
from isotherm.heat import HeatCollector
from isotherm.heat import received as heat_received
from isotherm.heat import snapshots as heat_snapshots
from isotherm.heat.snapshots import Snapshot, SnapshotRing
from isotherm.mover.mover import Mover
from isotherm.mover.transport import HostTransport
from isotherm.router import staging as router_staging
from isotherm.streams import Completion, Event, Handoff, Stream
from isotherm.testing import explore as explore_module
from isotherm.testing.explore import Program, ScheduleError, explore_programs, run, run_every_order, run_under
from isotherm.testing.findings import Finding, FreedInUse, Race
from isotherm.testing.programs import (
    PROGRAMS,
    heat_from_ids,
    heat_from_received,
    moving,
    tables_change_while_routing,
    weights_are_taken_up_by_word,
    weights_between_ranks,
    weights_move_while_used,
)
from isotherm.testing.schedules import MainFirst, RoundRobin, Schedule, Seeded, SideFirst, ordinary_schedules
from isotherm.testing.simulated import Simulation
from isotherm.testing.simulated_streams import SimulatedBackend, SimulatedStream

SEEDS = {
    "tables_change_while_routing": 15,
    "weights_move_while_used": 50,
    "weights_are_taken_up_by_word": 15,
    "weights_between_ranks": 80,
    "weights_between_devices": 10,
}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_every_schedule_finds_nothing(program: Program) -> None:
    run_under(program, ordinary_schedules(range(SEEDS.get(program.__name__, 25))))


def test_every_order_of_weights_between_ranks() -> None:
    """The heartbeat waits for each copy, so there are few orders, and all are run."""
    coverage = run_every_order(weights_between_ranks, max_orders=2000)
    assert coverage.is_complete
    assert coverage.orders >= 2


def test_the_first_orders_of_all_programs() -> None:
    for program in (tables_change_while_routing, weights_move_while_used):
        assert run_every_order(program, max_orders=5).orders == 5


def test_slots_do_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that moved nothing would find nothing."""
    carried = []
    carry = HostTransport.carry

    def counting(self: HostTransport, fills: object, link: object) -> None:
        carried.append(fills)
        carry(self, fills, link)  # type: ignore[arg-type]

    monkeypatch.setattr(HostTransport, "carry", counting)
    run_under(weights_move_while_used, map(Seeded, range(8)))
    assert len(carried) > 8


def test_snapshots_are_skipped_under_some_schedules_and_taken_under_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    skipped = set()
    close = HeatCollector.close

    def looking(self: HeatCollector, timeout_seconds: float = 30.0) -> None:
        skipped.add(self.skipped_snapshots > 0)
        close(self, timeout_seconds)

    monkeypatch.setattr(HeatCollector, "close", looking)
    run_under(heat_from_ids, [MainFirst(), SideFirst(), RoundRobin(), *map(Seeded, range(6))])
    assert skipped == {False, True}


def test_the_long_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def quick(simulation: Simulation) -> None:
        simulation.keep(torch.zeros(1, device=simulation.device))

    def broken(simulation: Simulation) -> None:
        assert simulation.choose(9) != 0, "the first way"

    monkeypatch.setattr("isotherm.testing.programs.PROGRAMS", (quick,))
    assert explore_programs(["--schedules", "5"]) == 0
    assert "quick: 5 schedules, nothing found" in capsys.readouterr().out
    monkeypatch.setattr("isotherm.testing.programs.PROGRAMS", (quick, broken))
    assert explore_programs(["--schedules", "20", "--first-seed", "3"]) == 1
    assert "To repeat it: run(broken, MainFirst())" in capsys.readouterr().out
    assert explore_module.__doc__ is not None


# -- mutants --------------------------------------------------------------------------------------------


def caught(program: Program, kind: type, *says: str) -> bool:
    """Whether some schedule leads to a finding of this kind in these words."""
    return any(
        isinstance(finding, kind) and all(word in str(finding) for word in says)
        for schedule in ordinary_schedules(range(12))
        for finding in findings_under(program, schedule)
    )


def findings_under(program: Program, schedule: Schedule) -> list[Finding]:
    """What is found; results may be wrong as well."""
    simulation = Simulation(schedule)
    with contextlib.suppress(AssertionError, RuntimeError, IndexError, ValueError), simulation:
        program(simulation)
    return simulation.findings


Mutate = Callable[[pytest.MonkeyPatch], None]


def no_edge_to_the_side_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_event = SimulatedStream.wait_event

    def forgetful(self: SimulatedStream, event: Event) -> None:
        if self._queue.name != "heat":
            wait_event(self, event)

    monkeypatch.setattr(SimulatedStream, "wait_event", forgetful)


def handoff_is_a_bare_deque(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimulatedBackend, "handoff", lambda self, items=(): Handoff(items))


def snapshot_is_read_before_it_landed(monkeypatch: pytest.MonkeyPatch) -> None:
    def landed(self: SnapshotRing) -> tuple[Snapshot, ...]:
        while (snapshot := self._taken.try_take()) is not None:
            self._held.append(snapshot)
        return tuple(self._held)

    monkeypatch.setattr(SnapshotRing, "landed", landed)


def buffer_is_dropped_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring frees a buffer when the snapshot is taken."""
    try_take = SnapshotRing.try_take

    def taking(self: SnapshotRing, *arguments: object) -> bool:
        taken = try_take(self, *arguments)  # type: ignore[arg-type]
        if taken:
            newest = self._taken.try_take()
            assert newest is not None
            self._taken.put(newest)
            self._free.put(newest.buffer)
        return taken

    monkeypatch.setattr(SnapshotRing, "try_take", taking)


def totals_are_not_copied_on_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """The side stream reads what main goes on to write."""
    make = SnapshotRing.__init__

    def aliased(self: SnapshotRing, totals: object, backend: object, **rest: object) -> None:
        make(self, totals, backend, **rest)  # type: ignore[arg-type]
        buffers = []
        while (buffer := self._free.try_take()) is not None:
            buffers.append(type(buffer)(totals.rows_MW, buffer.host))  # type: ignore[attr-defined]
        for buffer in buffers:
            self._free.put(buffer)

    monkeypatch.setattr(SnapshotRing, "__init__", aliased)
    monkeypatch.setattr(heat_snapshots, "_submit_copy", lambda *arguments: None)


class _Owning(Completion):
    """Owns nothing."""

    __slots__ = ()

    def __init__(self, event: Event, *owned: object) -> None:
        super().__init__(event)


class _Hasty(Completion):
    """Is done at once."""

    __slots__ = ()

    def done(self) -> bool:
        return True


def nobody_owns_counts_that_were_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heat_received, "Completion", _Owning)


def lent_counts_are_taken_for_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    count = HeatCollector.count

    def keeping(self: HeatCollector, layer: int, counts_S: torch.Tensor, **rest: object) -> None:
        count(self, layer, counts_S, **{**rest, "borrowed": False})  # type: ignore[arg-type]

    monkeypatch.setattr(HeatCollector, "count", keeping)


def snapshots_land_on_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong stream: it reads what the side stream counts."""
    try_take = SnapshotRing.try_take
    streams: list[Stream] = []

    def taking(self: SnapshotRing, step: int, tokens_K: tuple[int, ...], main: Stream, side: Stream) -> bool:
        if not streams or streams[0]._device is not side._device:  # type: ignore[attr-defined]
            streams[:] = [SimulatedBackend(side._device).side_stream("landing")]  # type: ignore[attr-defined]
        return try_take(self, step, tokens_K, main, streams[0])

    monkeypatch.setattr(SnapshotRing, "try_take", taking)


def tables_are_staged_where_the_device_still_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_staging, "Completion", _Hasty)


def weights_are_published_before_they_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(self: HostTransport, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        def work() -> None:
            for source, target in pairs:
                target.copy_(source, non_blocking=True)

        self._stream.submit(work, reads=[s for s, _ in pairs], writes=[t for _, t in pairs])

    monkeypatch.setattr(HostTransport, "_copy", copy)


def slots_are_filled_while_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: object) -> tuple[int, int]:
        while (ended := self.ended.try_take()) is not None:  # type: ignore[attr-defined]
            self._done = ended[:2]  # type: ignore[attr-defined]
        return self._done  # type: ignore[attr-defined, no-any-return]

    monkeypatch.setattr(moving._Heartbeat, "_finished", hasty)


def weights_are_read_before_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the first step."""
    carry = Mover._carry

    def hasty(self: Mover, link: Link) -> bool:
        self._step = max(self._step, 1)
        return carry(self, link)

    monkeypatch.setattr(Mover, "_carry", hasty)


def work_forgets_to_declare(monkeypatch: pytest.MonkeyPatch) -> None:
    submit = SimulatedStream.submit

    def silent(self: SimulatedStream, work: Callable[[], None], **declared: object) -> None:
        submit(self, work, **{**declared, "writes": ()})  # type: ignore[arg-type]

    monkeypatch.setattr(SimulatedStream, "submit", silent)


MUTANTS: tuple[tuple[Mutate, Program, type, tuple[str, ...]], ...] = (
    (
        no_edge_to_the_side_stream,
        heat_from_ids,
        Race,
        ("heat must wait for an event recorded on main behind",),
    ),
    (handoff_is_a_bare_deque, heat_from_ids, Race, ("must hand the memory over", "heartbeat")),
    (
        snapshot_is_read_before_it_landed,
        heat_from_ids,
        Race,
        ("thread 'heartbeat' must see an event recorded on heat behind", "land"),
    ),
    (buffer_is_dropped_while_it_is_read, heat_from_ids, Race, ("snapshots.py",)),
    (totals_are_not_copied_on_main, heat_from_ids, Race, ("'totals'", "land")),
    (nobody_owns_counts_that_were_handed_over, heat_from_received, FreedInUse, ("a Completion of an event",)),
    (lent_counts_are_taken_for_handed_over, heat_from_received, Race, ("'lent counts'", "heat")),
    (
        snapshots_land_on_a_stream_of_their_own,
        heat_from_received,
        Race,
        ("landing must wait for an event recorded on heat behind",),
    ),
    (
        tables_are_staged_where_the_device_still_reads,
        tables_change_while_routing,
        Race,
        ("write by", "thread 'heartbeat'", "stream 'main'"),
    ),
    (handoff_is_a_bare_deque, tables_change_while_routing, Race, ("must hand the memory over",)),
    (weights_are_published_before_they_arrived, weights_move_while_used, Race, ("recorded on move",)),
    (slots_are_filled_while_they_are_used, weights_move_while_used, Race, ("'weights of layer", "'move'")),
    (weights_are_read_before_they_are_loaded, weights_are_taken_up_by_word, Race, ("move must wait for",)),
    (
        slots_are_filled_while_they_are_used,
        weights_are_taken_up_by_word,
        Race,
        ("write by 'HostTransport._copy", "'Staging._copy.work' on stream 'main'"),
    ),
    (weights_are_published_before_they_arrived, weights_are_taken_up_by_word, Race, ("recorded on move",)),
    (handoff_is_a_bare_deque, weights_are_taken_up_by_word, Race, ("'Staging._copy.work'", "on move")),
)


@pytest.mark.parametrize(
    ("mutate", "program", "kind", "says"),
    MUTANTS,
    ids=[f"{mutate.__name__}-{program.__name__}" for mutate, program, _, _ in MUTANTS],
)
def test_a_mutant_is_caught(
    mutate: Mutate, program: Program, kind: type, says: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutate(monkeypatch)
    assert caught(program, kind, *says)


def test_work_that_forgets_to_declare_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    work_forgets_to_declare(monkeypatch)
    with pytest.raises(ScheduleError, match="undeclared write"):
        run(heat_from_ids, MainFirst())


def test_a_call_that_waits_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    end_step = HeatCollector.end_step

    def waiting(self: HeatCollector, **tokens: int) -> None:
        self.totals.rows_MW.sum().item()
        end_step(self, **tokens)

    monkeypatch.setattr(HeatCollector, "end_step", waiting)
    with pytest.raises(ScheduleError, match="made the host wait"):
        run(heat_from_ids, MainFirst())


def test_a_count_that_is_wrong_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    count_ids = HeatCollector.count_ids
    spared = deque([True])

    def forgetful(self: HeatCollector, *arguments: object, **rest: object) -> None:
        if not spared:
            count_ids(self, *arguments, **rest)  # type: ignore[arg-type]
        spared.clear()

    monkeypatch.setattr(HeatCollector, "count_ids", forgetful)
    with pytest.raises(ScheduleError, match="the plain count is"):
        run(heat_from_ids, MainFirst())
