"""The detector against every order there is: it finds something exactly where two orders give two results."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from isotherm.testing.clocks import Kind, Lane
from isotherm.testing.extents import Extent
from isotherm.testing.findings import Finding
from isotherm.testing.races import Detector
from isotherm.testing.schedules import Replayed
from isotherm.testing.simulated import Simulation

STREAMS, CELLS = 3, 2

Step = tuple[str, int, int, int]
"""What, on which stream, and two numbers: cells, or an event."""

steps = st.lists(
    st.one_of(
        st.tuples(st.just("stir"), st.integers(0, STREAMS - 1), st.integers(0, CELLS - 1), st.just(0)),
        st.tuples(st.just("mix"), st.integers(0, STREAMS - 1), st.integers(0, CELLS - 1), st.just(1)),
        st.tuples(st.just("record"), st.integers(0, STREAMS - 1), st.just(0), st.just(0)),
        st.tuples(st.just("wait"), st.integers(0, STREAMS - 1), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("host waits"), st.just(0), st.integers(0, 3), st.just(0)),
    ),
    max_size=9,
).filter(lambda program: sum(what in ("stir", "mix") for what, *_ in program) <= 5)


def outcome(program: list[Step], schedule: Replayed) -> tuple[tuple[int, ...], list[Finding]]:
    """The cells in the end, and what the detector says. Each operation multiplies what its cell holds, so no
    two orders of two that touch one cell give the same; none hides what came before it."""
    with torch.inference_mode(), Simulation(schedule) as simulation:
        numbers = simulation.keep(torch.arange(1, 20, device=simulation.device) * 1_000_003)
        cells = simulation.keep(torch.arange(1, CELLS + 1, device=simulation.device))
        simulation.backend.main_stream().synchronize()
        streams = [simulation.backend.side_stream(str(number)) for number in range(STREAMS)]
        events: list[Any] = []
        for number, (what, index, first, _) in enumerate(program):
            stream, cell, other = streams[index], cells[first % CELLS], cells[(first + 1) % CELLS]
            if what == "stir":
                apply(stream, cell, numbers[number], numbers[number])
            elif what == "mix":
                apply(stream, cell, other, numbers[number])
            elif what == "record":
                events.append(stream.record_event())
            elif events and what == "wait":
                stream.wait_event(events[first % len(events)])
            elif events:
                events[first % len(events)].synchronize()
        simulation.finish()
        found = list(simulation.findings)
        return tuple(simulation.value(cells).tolist()), found


def apply(stream: Any, cell: torch.Tensor, operand: torch.Tensor, factor: torch.Tensor) -> None:
    """cell = operand + 31 * factor * cell, in one operation; ``factor`` is its own."""
    stream.submit(
        lambda: torch.addcmul(operand, cell, factor, value=31, out=cell),
        reads=[operand, factor],
        writes=[cell],
    )


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
@example([("stir", 0, 0, 0), ("stir", 1, 0, 0)])
@example([("stir", 0, 0, 0), ("record", 0, 0, 0), ("wait", 1, 0, 0), ("stir", 1, 0, 0)])
@example([("mix", 0, 0, 1), ("mix", 1, 1, 1)])
@example([("stir", 0, 0, 0), ("record", 0, 0, 0), ("stir", 0, 0, 0), ("wait", 1, 0, 0), ("stir", 1, 0, 0)])
@example([("stir", 0, 0, 0), ("record", 0, 0, 0), ("host waits", 0, 0, 0), ("stir", 1, 0, 0)])
def test_something_is_found_exactly_where_orders_differ(program: list[Step]) -> None:
    outcomes, found, prefix = set(), set(), ()
    orders = 0
    while prefix is not None:
        schedule = Replayed(prefix)
        cells, findings = outcome(program, schedule)
        outcomes.add(cells)
        found.add(bool(findings))
        prefix = schedule.next_prefix()
        orders += 1
        assert orders <= 2000
    assert len(found) == 1, "what is found does not hang on the order"
    assert found == {len(outcomes) > 1}


class Piece:
    def describe(self, tensor: str) -> str:
        return tensor


def test_what_stands_for_an_access_finds_its_races() -> None:
    """Accesses are forgotten behind one that stands for them; the race is found with that one instead."""
    detector, memory = Detector(), Piece()
    main, side = Lane("main", Kind.STREAM), Lane("side", Kind.STREAM)
    for _ in range(100):
        detector.touch(detector.begin(main, "add"), memory, Extent.of(0, 8), writes=True, tensor="totals")
    assert len(detector._accesses[memory]) == 1
    detector.touch(detector.begin(main, "read"), memory, Extent.of(4, 8), writes=False, tensor="totals")
    assert len(detector._accesses[memory]) == 2, "a read stands for no write"
    detector.touch(detector.begin(main, "add"), memory, Extent.of(2, 8), writes=True, tensor="totals")
    assert len(detector._accesses[memory]) == 2, "two bytes of the first are not covered"
    detector.touch(detector.begin(side, "read"), memory, Extent.of(0, 1), writes=False, tensor="totals")
    assert len(detector.findings) == 1


def test_memory_that_is_forgotten_races_no_more() -> None:
    detector, memory = Detector(), Piece()
    lanes = [Lane(name, Kind.STREAM) for name in ("main", "side")]
    detector.touch(detector.begin(lanes[0], "add"), memory, Extent.of(0, 8), writes=True, tensor="totals")
    detector.forget(memory)
    detector.touch(detector.begin(lanes[1], "add"), memory, Extent.of(0, 8), writes=True, tensor="totals")
    detector.check()
