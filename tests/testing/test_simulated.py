"""The simulated device: results, waits, and every rule of the detector both ways."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
import torch

from isotherm.streams import Completion, Stream, forward_path, forward_waits
from isotherm.testing import streams_checks
from isotherm.testing.explore import run, run_every_order
from isotherm.testing.findings import (
    CaptureBroken,
    DeviceFault,
    Finding,
    FreedInUse,
    Race,
    Undeclared,
    UnexplainedWrite,
)
from isotherm.testing.schedules import MainFirst, Seeded, SideFirst
from isotherm.testing.simulated import Simulation

Program = Callable[[Simulation], None]


def found(program: Program, *schedules: object) -> list[Finding]:
    """What the detector says, which must be the same under every schedule."""
    all_findings = []
    for schedule in schedules or (MainFirst(), SideFirst(), Seeded(0), Seeded(1)):
        with torch.inference_mode(), Simulation(schedule) as simulation:  # type: ignore[arg-type]
            program(simulation)
        all_findings.append(simulation.findings)
    kinds = {tuple(type(finding) for finding in findings) for findings in all_findings}
    assert len(kinds) == 1, f"findings differ between schedules: {all_findings}"
    return all_findings[0]


def cell(simulation: Simulation, name: str = "totals") -> torch.Tensor:
    tensor = torch.zeros(4, dtype=torch.int64, device=simulation.device)
    simulation.name(tensor, name)
    return simulation.keep(tensor)


def pinned_cell(simulation: Simulation) -> torch.Tensor:
    return simulation.keep(simulation.backend.pinned_empty((4,), torch.int64))


# -- torch on the device ------------------------------------------------------------------------------


def computed(device: torch.device) -> list[torch.Tensor]:
    """A little of everything that Isotherm's code does, on any device."""
    table = torch.from_numpy(np.arange(12, dtype=np.int64).reshape(3, 4)).to(device)
    out = torch.empty(4, dtype=torch.int64, device=device)
    torch.sum(table, 0, out=out)
    columns = table[:, 1:3]
    columns.mul_(2)
    order = torch.sort(table.flatten(), descending=True, stable=True)[1]
    ordinal = torch.empty_like(order)
    ordinal[order] = torch.arange(len(order), device=device)
    heat = table.new_zeros(5)
    heat.scatter_add_(0, table.reshape(-1) % 5, torch.ones_like(order))
    mixed = torch.where(table > 3, table.float(), torch.zeros((), device=device)).to(torch.int32)
    running = torch.diff(heat.cumsum(0), prepend=heat.new_zeros(1))
    found = torch.searchsorted(out, heat, right=True)
    picked = table[table > 3]
    views = table.view(torch.uint8).t().contiguous()
    return [table, out, order, ordinal, heat, mixed, running, found, picked, views, torch.cat([heat, out])]


@pytest.mark.parametrize("is_inference", [False, True])
@pytest.mark.parametrize("schedule", [MainFirst(), Seeded(3)], ids=repr)
def test_results_are_those_of_torch(schedule: object, is_inference: bool) -> None:
    wanted = computed(torch.device("cpu"))
    with torch.inference_mode(is_inference), Simulation(schedule) as simulation:  # type: ignore[arg-type]
        results = computed(simulation.device)
        assert all(result.device == simulation.device for result in results)
        assert [result.cpu().tolist() for result in results] == [result.tolist() for result in wanted]
        assert results[0].tolist() == wanted[0].tolist()
    assert simulation.findings == []


def test_memory_of_the_device_cannot_be_read_from_the_host() -> None:
    with Simulation(MainFirst()) as simulation:
        tensor = cell(simulation)
        with pytest.raises(RuntimeError, match="numpy"):
            tensor.numpy()
        with pytest.raises(RuntimeError, match="copy it there first"):
            tensor + torch.arange(4)
        with pytest.raises(RuntimeError, match="without asking the simulation"):
            torch.tensor([1, 2], device=simulation.device) + 1
        assert (tensor + torch.tensor(3)).tolist() == [3] * 4, "a number may lie on the host"
        assert "int64 [4]" in repr(tensor)


def test_a_second_real_thread_is_refused() -> None:
    refused = []

    def use(tensor: torch.Tensor) -> None:
        try:
            tensor.add_(1)
        except RuntimeError as error:
            refused.append(str(error))

    with Simulation(MainFirst()) as simulation:
        thread = threading.Thread(target=use, args=(cell(simulation),))
        thread.start()
        thread.join()
    assert "driven by one real thread" in refused[0]


@torch.library.custom_op("isotherm_tests::add_twice", mutates_args=("totals",))
def add_twice(totals: torch.Tensor, counts: torch.Tensor) -> None:
    totals.add_(counts)
    totals.add_(counts)


def test_a_custom_operator_launches_what_it_calls() -> None:
    with Simulation(MainFirst()) as simulation:
        totals, counts = cell(simulation), cell(simulation, "counts").add_(2)
        with simulation.capture() as graph:
            add_twice(totals, counts)
        graph.replay()
        graph.replay()
        simulation.backend.main_stream().submit(lambda: add_twice(totals, counts), writes=[totals])
        assert totals.tolist() == [12] * 4
    assert [type(finding) for finding in simulation.findings] == [Undeclared] * 2, (
        "what each of its lines reads"
    )


def test_nothing_runs_until_somebody_could_tell() -> None:
    with Simulation(SideFirst()) as simulation:
        tensor = cell(simulation)
        tensor.fill_(7)
        assert simulation.value(tensor).tolist() != [7] * 4
        assert tensor.tolist() == [7] * 4


def waits_of(act: Callable[[Simulation, torch.Tensor, torch.Tensor], object]) -> int:
    with torch.inference_mode(), Simulation(MainFirst()) as simulation:
        tensor, pinned = cell(simulation), pinned_cell(simulation)
        before = forward_waits()
        with forward_path():
            act(simulation, tensor, pinned)
        assert forward_waits() - before == simulation.host_waits, "the meter of streams sees them too"
        return simulation.host_waits


@pytest.mark.parametrize(
    "act",
    [
        lambda simulation, tensor, pinned: tensor.sum().item(),
        lambda simulation, tensor, pinned: bool(tensor.any()),
        lambda simulation, tensor, pinned: tensor.cpu(),
        lambda simulation, tensor, pinned: tensor.tolist(),
        lambda simulation, tensor, pinned: torch.equal(tensor, tensor),
        lambda simulation, tensor, pinned: pinned.copy_(tensor),
        lambda simulation, tensor, pinned: tensor.copy_(pinned),
        lambda simulation, tensor, pinned: tensor.copy_(torch.arange(4)),
        lambda simulation, tensor, pinned: torch.arange(4).copy_(tensor, non_blocking=True),
        lambda simulation, tensor, pinned: tensor.nonzero(),
        lambda simulation, tensor, pinned: tensor[tensor > 1],
        lambda simulation, tensor, pinned: simulation.backend.main_stream().synchronize(),
    ],
)
def test_what_makes_a_device_wait_waits_here(act: Callable[..., object]) -> None:
    if "synchronize" in act.__code__.co_names:
        # Main has run when it is asked under this schedule, so there is nothing left to wait for.
        assert waits_of(act) == 0
    else:
        assert waits_of(act) == 1


@pytest.mark.parametrize(
    "act",
    [
        lambda simulation, tensor, pinned: tensor.add_(1),
        lambda simulation, tensor, pinned: tensor.copy_(pinned, non_blocking=True),
        lambda simulation, tensor, pinned: pinned.copy_(tensor, non_blocking=True),
        lambda simulation, tensor, pinned: tensor.copy_(torch.arange(4), non_blocking=True),
        lambda simulation, tensor, pinned: tensor.to("cpu", non_blocking=True),
        lambda simulation, tensor, pinned: pinned.fill_(1),
        lambda simulation, tensor, pinned: pinned.numpy(),
        lambda simulation, tensor, pinned: simulation.backend.main_stream().record_event().query(),
    ],
)
def test_what_makes_no_device_wait_does_not_wait_here(act: Callable[..., object]) -> None:
    assert waits_of(act) == 0


def test_a_copy_from_plain_memory_has_read_it_when_it_returns() -> None:
    with Simulation(SideFirst()) as simulation:
        tensor, plain = cell(simulation), torch.arange(4)
        tensor.copy_(plain, non_blocking=True)
        plain.zero_()
        assert tensor.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("check", streams_checks.CHECKS, ids=lambda check: check.__name__)
def test_the_contract_of_streams(check: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check holds here. Work is slow by the schedule, which runs the side as late as it may, so what
    the checks use to keep a device busy is not needed."""
    monkeypatch.setattr(streams_checks, "slow_work", _late_work)
    with Simulation(MainFirst()) as simulation:
        check(simulation.backend)
    simulation.check()


class _late_work:  # noqa: N801  # it stands for a function
    def __init__(self, backend: object) -> None:
        self._cell = torch.zeros(1, device=backend.device)  # type: ignore[attr-defined]
        backend.main_stream().synchronize()  # type: ignore[attr-defined]

    def __enter__(self) -> _late_work:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __call__(self) -> None:
        torch.ones(1, device=self._cell.device)

    def release(self) -> None:
        pass


# -- races --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_edge", [True, False])
def test_a_side_stream_reads_what_main_writes(is_edge: bool) -> None:
    def program(simulation: Simulation) -> None:
        totals, copy = cell(simulation), cell(simulation, "copy")
        main, side = simulation.backend.main_stream(), simulation.backend.side_stream("heat")
        side.wait_event(main.record_event())
        totals.add_(1)
        if is_edge:
            side.wait_event(main.record_event())
        side.submit(lambda: copy.copy_(totals), reads=[totals], writes=[copy])

    findings = found(program)
    assert [type(finding) for finding in findings] == ([] if is_edge else [Race])
    for race in findings:
        text = str(race)
        assert "'totals' int64 [4]" in text
        assert "heat must wait for an event recorded on main behind 'add_'" in text
        assert "test_simulated.py" in race.first.site  # type: ignore[union-attr]


@pytest.mark.parametrize(("first", "second", "races"), [(0, 1, 0), (0, 2, 0), (1, 2, 0), (2, 2, 1)])
def test_only_bytes_that_are_shared_race(first: int, second: int, races: int) -> None:
    def program(simulation: Simulation) -> None:
        table = simulation.keep(torch.zeros(4, 3, dtype=torch.int32, device=simulation.device))
        main, side = simulation.backend.main_stream(), simulation.backend.side_stream("heat")
        side.wait_event(main.record_event())
        table[:, first].add_(1)
        column = table[:, second]
        side.submit(lambda: column.add_(1), writes=[column])
        side.record_event().synchronize()

    assert len(found(program)) == races


def test_reads_do_not_race() -> None:
    def program(simulation: Simulation) -> None:
        totals = cell(simulation)
        side = simulation.backend.side_stream("heat")
        side.wait_event(simulation.backend.main_stream().record_event())
        kept = totals + 1
        side.submit(lambda: totals.sum(), reads=[totals])
        simulation.backend.side_stream("move").wait_event(side.record_event())
        side.record_event().synchronize()
        assert kept.tolist() == [1] * 4

    assert found(program) == []


@pytest.mark.parametrize("is_seen", [True, False])
def test_the_host_reads_what_has_landed(is_seen: bool) -> None:
    def program(simulation: Simulation) -> None:
        totals, pinned = cell(simulation), pinned_cell(simulation)
        pinned.copy_(totals, non_blocking=True)
        if is_seen:
            simulation.backend.main_stream().record_event().synchronize()
        pinned.numpy()

    findings = found(program)
    assert [type(finding) for finding in findings] == ([] if is_seen else [Race])
    if not is_seen:
        assert "thread 'main' must see an event recorded on main behind 'copy' done" in str(findings[0])


@pytest.mark.parametrize("is_seen", [True, False])
def test_a_pinned_buffer_is_filled_again_when_it_was_read(is_seen: bool) -> None:
    """The staging of tables: written by the host, read by the device, written again."""

    def program(simulation: Simulation) -> None:
        tables, staging = cell(simulation), pinned_cell(simulation)
        for value in (1, 2):
            simulation.backend.caller_stream().submit(
                lambda value=value: np.copyto(staging.numpy(), value), writes=[staging]
            )
            tables.copy_(staging, non_blocking=True)
            taken = simulation.backend.main_stream().record_event()
            if is_seen:
                taken.synchronize()

    findings = found(program)
    assert [type(finding) for finding in findings] == ([] if is_seen else [Race])


def test_a_race_shows_in_the_bytes_under_the_schedule_that_loses_it() -> None:
    values = set()

    def program(simulation: Simulation) -> None:
        totals, copy = cell(simulation), cell(simulation, "copy")
        simulation.finish()
        side = simulation.backend.side_stream("heat")
        totals.add_(1)
        side.submit(lambda: copy.copy_(totals), reads=[totals], writes=[copy])
        simulation.finish()
        values.add(simulation.value(copy)[0].item())

    found(program)
    assert values == {0, 1}


@pytest.mark.parametrize("is_handoff", [True, False])
def test_a_handoff_orders_threads_and_a_bare_deque_does_not(is_handoff: bool) -> None:
    def program(simulation: Simulation) -> None:
        backend = simulation.backend
        totals, buffer = cell(simulation), pinned_cell(simulation)
        free = backend.handoff([buffer]) if is_handoff else deque([buffer])
        take = free.try_take if is_handoff else free.popleft  # type: ignore[union-attr]
        give = free.put if is_handoff else free.append  # type: ignore[union-attr]
        del buffer
        for _ in range(2):
            landing = take()
            landing.copy_(totals, non_blocking=True)
            landed = backend.main_stream().record_event()
            with simulation.host_thread("heartbeat"):
                landed.synchronize()
                backend.caller_stream().submit(lambda landing=landing: landing.numpy(), reads=[landing])
                give(landing)

    findings = found(program)
    assert [type(finding) for finding in findings] == ([] if is_handoff else [Race])
    if not is_handoff:
        assert "put it into a Handoff" in str(findings[0])


def test_a_thread_begins_behind_its_starter_and_ends_before_its_joiner() -> None:
    def program(simulation: Simulation, is_joined: bool) -> None:
        buffer = pinned_cell(simulation)
        buffer.fill_(1)
        with simulation.host_thread("worker"):
            buffer.add_(1)
        if is_joined:
            simulation.join_thread("worker")
        assert buffer.tolist() == [2] * 4

    assert found(lambda simulation: program(simulation, True)) == []
    assert len(found(lambda simulation: program(simulation, False))) == 1


def test_two_engine_streams_are_two_streams() -> None:
    def program(simulation: Simulation) -> None:
        totals = cell(simulation)
        with simulation.engine_stream("second"):
            simulation.backend.main_stream().submit(lambda: totals.add_(1), writes=[totals])
        totals.add_(1)

    assert len(found(program)) == 2, "both the zeros and the addition of main race with it"


# -- declarations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("declared", ["reads", "writes", "nothing", "another part"])
def test_work_that_touches_what_it_does_not_declare(declared: str) -> None:
    def program(simulation: Simulation) -> None:
        totals = cell(simulation)
        main = simulation.backend.main_stream()
        named = {"reads": {"reads": [totals]}, "writes": {"writes": [totals]}}
        named["another part"] = {"writes": [totals[1:]]}
        main.submit(lambda: totals.add_(1), **named.get(declared, {}))

    findings = found(program)
    assert [type(finding) for finding in findings] == ([] if declared == "writes" else [Undeclared])
    if declared == "reads":
        assert "undeclared write of 'totals' int64 [4] by 'add_'" in str(findings[0])
        assert "name it in writes=" in str(findings[0])


def test_undeclared_work_races_as_well() -> None:
    def program(simulation: Simulation) -> None:
        totals, side = cell(simulation), simulation.backend.side_stream("heat")
        side.submit(lambda: totals.add_(1))
        simulation.finish()

    assert {type(finding) for finding in found(program)} == {Undeclared, Race}


def test_work_may_make_memory_of_its_own() -> None:
    def program(simulation: Simulation) -> None:
        totals, side = cell(simulation), simulation.backend.side_stream("heat")
        side.wait_event(simulation.backend.main_stream().record_event())
        side.submit(lambda: totals.add_((totals * 2).clone()), writes=[totals])
        side.record_event().synchronize()

    assert found(program) == []


@pytest.mark.parametrize("where", ["side", "caller", "between"])
def test_a_write_through_numpy_that_nobody_declares(where: str) -> None:
    def program(simulation: Simulation) -> None:
        backend = simulation.backend
        named, other = (pinned_cell(simulation) for _ in range(2))
        array = other.numpy()

        def work() -> None:
            array[2] = 7

        match where:
            case "side":
                backend.side_stream("heat").submit(work, writes=[named])
            case "caller":
                backend.caller_stream().submit(work, writes=[named])
            case "between":
                work()

    assert [type(finding) for finding in found(program)] == [UnexplainedWrite]


def test_a_write_at_launch_is_the_hosts_even_where_a_stream_declares_it() -> None:
    """The mutant that fills memory of the device by a raw pointer when it is enqueued."""

    def program(simulation: Simulation) -> None:
        totals, side = cell(simulation), simulation.backend.side_stream("heat")
        side.wait_event(simulation.backend.main_stream().record_event())
        side.submit(lambda: totals.raw.fill_(3), writes=[totals])  # type: ignore[attr-defined]

    findings = found(program)
    assert [type(finding) for finding in findings] == [UnexplainedWrite]
    assert "'totals'" in str(findings[0])


def test_the_host_that_reads_when_it_enqueues_reads_too_early() -> None:
    def program(simulation: Simulation) -> None:
        totals, side = cell(simulation), simulation.backend.side_stream("heat")
        landing = pinned_cell(simulation)
        side.wait_event(simulation.backend.main_stream().record_event())

        def work() -> None:
            landing.copy_(totals, non_blocking=True)
            landing.numpy()

        side.submit(work, reads=[totals], writes=[landing])
        side.record_event().synchronize()

    assert [type(finding) for finding in found(program)] == [Race]


# -- memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("owner", ["completion", "nobody", "the same stream", "dropped in time"])
def test_memory_outlives_its_readers(owner: str) -> None:
    sums = set()

    def count(simulation: Simulation, totals: torch.Tensor, stream: Stream) -> Completion:
        counts = torch.ones(4, dtype=torch.int64, device=simulation.device)
        stream.wait_event(simulation.backend.main_stream().record_event())
        stream.submit(lambda: totals.add_(counts), reads=[counts], writes=[totals])
        return Completion(stream.record_event(), counts)

    def program(simulation: Simulation) -> None:
        backend = simulation.backend
        totals, side = cell(simulation), backend.side_stream("heat")
        stream = backend.main_stream() if owner == "the same stream" else side
        completion = count(simulation, totals, stream)
        if owner == "dropped in time":
            completion.wait()
        if owner != "completion":
            del completion
        next_user = torch.full((4,), 99, dtype=torch.int64, device=simulation.device)
        simulation.finish()
        sums.add(simulation.value(totals)[0].item())
        side.synchronize()
        del next_user

    findings = found(program)
    assert [type(finding) for finding in findings] == ([FreedInUse] if owner == "nobody" else [])
    if owner == "nobody":
        assert "a Completion of an event recorded on heat behind" in str(findings[0])
        assert "test_simulated.py" in findings[0].allocated  # type: ignore[union-attr]
        assert len(sums) > 1, "another's bytes arrive under a schedule that runs their writer first"
    else:
        assert sums == {1}


def test_the_next_allocation_gets_what_was_freed_last() -> None:
    with Simulation(MainFirst()) as simulation:
        first = torch.zeros(4, device=simulation.device)
        address = first.raw.data_ptr()  # type: ignore[attr-defined]
        del first
        other = torch.zeros(400, device=simulation.device)
        again = torch.zeros(3, device=simulation.device)
        assert again.raw.data_ptr() == address  # type: ignore[attr-defined]
        assert other.raw.data_ptr() != address  # type: ignore[attr-defined]


def test_queues_keep_no_tensor_of_the_programs() -> None:
    with Simulation(MainFirst()) as simulation:
        tensor = torch.zeros(4, dtype=torch.int64, device=simulation.device)
        alive = weakref.ref(tensor)
        side = simulation.backend.side_stream("heat")
        side.submit(lambda tensor=tensor: tensor.add_(1), writes=[tensor])
        del tensor
        assert alive() is None


def test_pinned_memory_that_a_copy_still_fills() -> None:
    def program(simulation: Simulation, is_owned: bool) -> None:
        totals, pinned = cell(simulation), simulation.backend.pinned_empty((4,), torch.int64)
        pinned.copy_(totals, non_blocking=True)
        if is_owned:
            simulation.backend.main_stream().record_event().synchronize()
        del pinned

    assert found(lambda simulation: program(simulation, True)) == []
    findings = found(lambda simulation: program(simulation, False))
    assert [type(finding) for finding in findings] == [FreedInUse]


def test_an_array_keeps_the_pinned_memory_that_it_shows() -> None:
    with Simulation(MainFirst()) as simulation:
        pinned = simulation.backend.pinned_empty((4,), torch.int64)
        pinned.fill_(7)
        array = pinned[1:].numpy()
        del pinned
        simulation.finish()
        assert array.tolist() == [7] * 3
        part = array[1:]
        del array
        assert part.tolist() == [7] * 2
        address = part.ctypes.data - 16
        del part
        assert simulation.backend.pinned_empty((4,), torch.int64).numpy().ctypes.data == address
    simulation.check()


def test_an_operation_that_fails_on_the_device_is_a_finding() -> None:
    def program(simulation: Simulation) -> None:
        totals = cell(simulation)
        index = torch.full((1,), 9, device=simulation.device)
        totals.scatter_add_(0, index, totals[:1])
        simulation.finish()

    findings = found(program)
    assert [type(finding) for finding in findings] == [DeviceFault]
    assert "scatter_add_" in str(findings[0])


def test_memory_that_is_too_small_says_so() -> None:
    with (
        Simulation(MainFirst(), arena_bytes=1024) as simulation,
        pytest.raises(MemoryError, match="arena_bytes"),
    ):
        torch.zeros(2000, device=simulation.device)


# -- capture and collectives ----------------------------------------------------------------------------


def test_a_graph_repeats_what_was_captured() -> None:
    with Simulation(Seeded(2)) as simulation:
        totals, counts = cell(simulation), cell(simulation, "counts")
        with simulation.capture() as graph:
            totals.add_(counts * 2)
        for value in (1, 2, 3):
            counts.fill_(value)
            graph.replay()
        assert totals.tolist() == [12] * 4
    assert simulation.findings == []


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (
            lambda simulation, totals, side: side.submit(lambda: totals.add_(1), writes=[totals]),
            "side stream",
        ),
        (
            lambda simulation, totals, side: simulation.backend.main_stream().wait_event(side.record_event()),
            "waits for an event of heat",
        ),
        (lambda simulation, totals, side: totals.sum().item(), "the host waits"),
    ],
    ids=["side stream", "event", "host wait"],
)
def test_what_a_graph_cannot_hold(broken: Callable[..., object], says: str) -> None:
    with Simulation(MainFirst()) as simulation:
        totals, side = cell(simulation), simulation.backend.side_stream("heat")
        # An operation that the host waits for has no result to give: nothing ran.
        with simulation.capture(), contextlib.suppress(IndexError):
            broken(simulation, totals, side)
    broken_captures = [finding for finding in simulation.findings if isinstance(finding, CaptureBroken)]
    assert any(says in str(finding) for finding in broken_captures)


def test_other_threads_go_on_while_the_engine_captures() -> None:
    with Simulation(MainFirst()) as simulation:
        totals, weights = cell(simulation), cell(simulation, "weights")
        move = simulation.backend.side_stream("move")
        move.wait_event(simulation.backend.main_stream().record_event())
        with simulation.capture() as graph:
            totals.add_(1)
            with simulation.host_thread("heartbeat"):
                move.submit(lambda: weights.add_(1), writes=[weights])
                move.record_event().synchronize()
        for _ in range(3):
            graph.replay()
        move.synchronize()
        assert totals.tolist() == [3] * 4
        assert weights.tolist() == [1] * 4
    simulation.check()


def test_only_memory_of_the_simulation_has_a_name_and_a_value() -> None:
    with Simulation(MainFirst()) as simulation:
        for ask in (
            lambda: simulation.name(torch.zeros(2), "totals"),
            lambda: simulation.value(torch.zeros(2)),
        ):
            with pytest.raises(ValueError, match=r"float32 \[2\] on cpu given"):
                ask()


def test_a_graph_that_uses_freed_memory() -> None:
    with Simulation(MainFirst()) as simulation:
        totals, counts = cell(simulation), torch.ones(4, dtype=torch.int64, device=simulation.device)
        simulation.name(counts, "counts")
        with simulation.capture() as graph:
            totals.add_(counts)
        graph.replay()
        assert simulation.findings == []
        del counts
        graph.replay()
    assert [type(finding) for finding in simulation.findings] == [CaptureBroken]
    assert "'counts'" in str(simulation.findings[0])


def test_replays_race_like_what_they_repeat() -> None:
    with Simulation(MainFirst()) as simulation:
        totals, side = cell(simulation), simulation.backend.side_stream("heat")
        side.wait_event(simulation.backend.main_stream().record_event())
        with simulation.capture() as graph:
            totals.add_(1)
        side.submit(lambda: totals.sum(), reads=[totals])
        assert simulation.findings == [], "capturing runs nothing"
        graph.replay()
    assert [type(finding) for finding in simulation.findings] == [Race]


@pytest.mark.parametrize("is_awaited", [True, False])
def test_a_collective_holds_its_memory_until_it_is_complete(is_awaited: bool) -> None:
    def program(simulation: Simulation) -> None:
        group = simulation.collective_group(3, lambda call, peer, mine: mine + 10 * (peer + 1))
        totals = cell(simulation)
        totals.add_(1)
        work = group.start_all_reduce(totals)
        if is_awaited:
            work.wait()
        totals.add_(0)
        if is_awaited:
            assert totals.tolist() == [33] * 4

    assert [type(finding) for finding in found(program)] == ([] if is_awaited else [Race])


def test_collectives_on_a_side_stream_are_declared_and_ordered() -> None:
    with torch.inference_mode(), Simulation(Seeded(5)) as simulation:
        group = simulation.collective_group(3, lambda call, peer, mine: mine * 0 + 100 * call + peer)
        mine, gathered = cell(simulation), torch.empty(3, 4, dtype=torch.int64, device=simulation.device)
        main, side = simulation.backend.main_stream(), simulation.backend.side_stream("heat")
        mine.add_(7)
        side.wait_event(main.record_event())

        def work() -> None:
            group.all_reduce(mine)
            group.all_gather(gathered, mine)

        side.submit(work, writes=[mine, gathered])
        main.wait_event(side.record_event())
        assert gathered.tolist() == [[100] * 4, [101] * 4, [8] * 4]
        side.submit(lambda: group.all_reduce(mine), reads=[mine])
    assert [type(finding) for finding in simulation.findings] == [Undeclared]


# -- every order ----------------------------------------------------------------------------------------


def test_a_snapshot_is_right_in_every_order() -> None:
    """Counting, snapshot, landing and reading, as heat does it: all orders, with the host looking between."""
    seen = set()

    def program(simulation: Simulation) -> None:
        backend = simulation.backend
        with torch.inference_mode():
            totals, copy = cell(simulation), cell(simulation, "copy")
            landing = backend.pinned_empty((4,), torch.int64)
            main, side = backend.main_stream(), backend.side_stream("heat")
            totals.add_(1)
            copy.copy_(totals)
            side.wait_event(main.record_event())
            side.submit(lambda: landing.copy_(copy, non_blocking=True), reads=[copy], writes=[landing])
            landed = side.record_event()
            totals.add_(1)
            if landed.query():
                seen.add(landing.numpy()[0])
            landed.synchronize()
            assert landing.tolist() == [1] * 4
            assert totals.tolist() == [2] * 4

    coverage = run_every_order(program, max_orders=500)
    assert coverage.is_complete
    assert seen == {1}
    assert coverage.orders > 3


def test_the_timeline_shows_who_did_what() -> None:
    with Simulation(MainFirst()) as simulation:
        cell(simulation)
        simulation.finish()
    text = simulation.detector.timeline.text()
    assert "zeros" in text
    assert "test_simulated.py" in text
    assert len(simulation.detector.timeline.text(last=1).splitlines()) == 1
    simulation.check()


def test_check_raises_with_everything() -> None:
    def program(simulation: Simulation) -> None:
        totals, side = cell(simulation), simulation.backend.side_stream("heat")
        side.submit(lambda: totals.add_(1), writes=[totals])

    with pytest.raises(AssertionError, match=r"1\. race on 'totals'[\s\S]*enqueued"):
        run(program, MainFirst())


def test_findings_are_told_once() -> None:
    def program(simulation: Simulation) -> None:
        totals, side = cell(simulation), simulation.backend.side_stream("heat")
        for _, stream in itertools.product(range(5), (side, simulation.backend.main_stream())):
            stream.submit(lambda: totals.add_(1), writes=[totals])

    assert 0 < len(found(program)) <= 3
