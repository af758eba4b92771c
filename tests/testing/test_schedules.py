"""Every order of small programs, counted by hand; and schedules that repeat themselves."""

from __future__ import annotations

import math

import pytest
import torch

from isotherm.testing.explore import ScheduleError, run, run_every_order, run_under
from isotherm.testing.schedules import (
    MainFirst,
    Replayed,
    RoundRobin,
    Schedule,
    Seeded,
    SideFirst,
    ordinary_schedules,
)
from isotherm.testing.simulated import Simulation


def ran(simulation: Simulation) -> list[str]:
    return [moment.lane for moment in simulation.detector.timeline.moments if moment.verb == "runs"]


@pytest.mark.parametrize(("counts", "orders"), [((2, 3), 10), ((1, 1, 1), 6), ((4,), 1), ((2, 2, 2), 90)])
def test_every_order_of_independent_operations(counts: tuple[int, ...], orders: int) -> None:
    assert orders == math.factorial(sum(counts)) // math.prod(math.factorial(count) for count in counts)
    seen = set()

    def program(simulation: Simulation) -> None:
        cells = simulation.keep(torch.empty(len(counts), dtype=torch.int64, device=simulation.device))
        for number, count in enumerate(counts):
            stream = simulation.backend.side_stream(f"side{number}")
            cell = cells[number]
            for _ in range(count):
                stream.submit(lambda cell=cell: cell.fill_(1), writes=[cell])
        simulation.finish()
        seen.add(tuple(ran(simulation)))

    coverage = run_every_order(program, max_orders=1000)
    assert (coverage.orders, coverage.is_complete) == (orders, True)
    assert len(seen) == orders, "each order once"


def test_an_edge_leaves_out_the_orders_it_forbids() -> None:
    """Two and two, the second pair behind the first pair's first: of 6 orders, those that begin with the
    first stream, 3."""

    def program(simulation: Simulation) -> None:
        cells = simulation.keep(torch.empty(2, dtype=torch.int64, device=simulation.device))
        one, other = (simulation.backend.side_stream(name) for name in ("one", "other"))
        one.submit(lambda: cells[0].fill_(1), writes=[cells[0]])
        other.wait_event(one.record_event())
        one.submit(lambda: cells[0].fill_(2), writes=[cells[0]])
        for value in (1, 2):
            other.submit(lambda value=value: cells[1].fill_(value), writes=[cells[1]])
        simulation.finish()

    assert run_every_order(program, max_orders=100).orders == 3


def test_a_look_of_the_host_comes_anywhere() -> None:
    """Two operations and one query: before both, between them, behind both."""
    answers = []

    def program(simulation: Simulation) -> None:
        cell = simulation.keep(torch.empty(1, dtype=torch.int64, device=simulation.device))
        stream = simulation.backend.side_stream("side")
        for value in (1, 2):
            stream.submit(lambda value=value: cell.fill_(value), writes=[cell])
        event = stream.record_event()
        answers.append((event.query(), len(ran(simulation))))
        simulation.finish()

    assert run_every_order(program, max_orders=100).is_complete
    assert sorted(answers) == [(False, 0), (False, 1), (True, 2)]


def test_a_bound_is_told_from_the_end() -> None:
    def program(simulation: Simulation) -> None:
        assert simulation.choose(3) < 3

    assert not run_every_order(program, max_orders=2).is_complete
    assert run_every_order(program, max_orders=3).is_complete


def interleaved(simulation: Simulation) -> None:
    """Three streams that do not depend on each other, and a host that looks now and then."""
    cells = simulation.keep(torch.zeros(3, dtype=torch.int64, device=simulation.device))
    side = [simulation.backend.side_stream(name) for name in ("heat", "move")]
    streams = [simulation.backend.main_stream(), *side]
    for stream in side:
        stream.wait_event(streams[0].record_event())
    for value in range(8):
        for stream, cell in zip(streams, cells.unbind(), strict=True):
            stream.submit(lambda cell=cell, value=value: cell.fill_(value), writes=[cell])
        streams[1].record_event().query()


@pytest.mark.parametrize("seed", range(5))
def test_a_seed_repeats_its_order(seed: int) -> None:
    first, second = run(interleaved, Seeded(seed)), run(interleaved, Seeded(seed))
    assert ran(first) == ran(second)
    assert repr(Seeded(seed)) == f"Seeded({seed})"


def test_seeds_differ() -> None:
    assert len({tuple(ran(run(interleaved, Seeded(seed)))) for seed in range(20)}) > 10


def test_plain_schedules_are_what_they_say() -> None:
    main_first, side_first = ran(run(interleaved, MainFirst())), ran(run(interleaved, SideFirst()))
    last_main = len(main_first) - 1 - main_first[::-1].index("main")
    assert "heat" not in main_first[:last_main]
    assert side_first.index("main", 1) > side_first.index("heat"), "the side before what main need not do"
    turns = ran(run(interleaved, RoundRobin()))
    assert turns not in (main_first, side_first)
    assert run_under(interleaved, ordinary_schedules(range(4))) == 7


def test_a_failure_tells_how_to_repeat_it() -> None:
    def fails(simulation: Simulation) -> None:
        cell = torch.zeros(1, dtype=torch.int64, device=simulation.device)
        assert simulation.choose(4) != 3, "the fourth way"
        cell.add_(1)

    with pytest.raises(
        ScheduleError, match=r"the fourth way[\s\S]*zeros[\s\S]*run\(fails, Replayed\(\[3\]\)\)"
    ):
        run_every_order(fails, max_orders=10)
    with pytest.raises(ScheduleError):
        run(fails, Replayed([3]))


@pytest.mark.parametrize(
    "schedule", [MainFirst(), SideFirst(), RoundRobin(), Seeded(1), Replayed()], ids=repr
)
def test_schedules_choose_what_there_is(schedule: Schedule) -> None:
    for may_stop in (False, True):
        for ready in (["main"], ["heat"], ["heat", "main", "move"]):
            choice = schedule.choose_stream(ready, may_stop=may_stop)
            assert choice in (range(len(ready)) if not may_stop else [None, *range(len(ready))])
    assert 0 <= schedule.choose(5) < 5
