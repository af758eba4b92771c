"""All measurements of heat, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable

from isotherm import planner, router
from isotherm.bench.clocks import quiet
from isotherm.bench.exposed import measure_exposed
from isotherm.bench.figures import Report, Section
from isotherm.bench.gathers import measure_gathers
from isotherm.bench.lookup import measure_lookup
from isotherm.bench.machine import describe_machine
from isotherm.bench.ranks import run_ranks
from isotherm.bench.side import measure_side_threads
from isotherm.bench.sizes import measure_memory
from isotherm.bench.wire import WireBytes, measure_wire, measure_wire_on_ranks


def measure_heat(*, quick: bool, tell: Callable[[str], None]) -> Report:
    """What collecting heat costs on this machine; ``tell`` hears what is measured next.

    ``quick``: a few samples of everything.

    Raises:
        RuntimeError: a process of the benchmark failed; the message holds its traceback.
    """
    begun = time.monotonic()
    machine = describe_machine()
    planner.warm_up()
    router.warm_up()
    tell("mapping and counting beside a look-up ...")
    lookup = measure_lookup(quick=quick)
    tell("two processes: side threads, single gathers, steps with collection and without ...")
    side, gathers, exposed, wire = run_ranks(_measure_on_ranks, quick)
    sections = (lookup, side, exposed, gathers, measure_wire(wire), measure_memory())
    return Report("heat", machine, time.monotonic() - begun, sections)


def _measure_on_ranks(quick: bool) -> tuple[Section, Section, Section, WireBytes]:
    with quiet():
        return (
            measure_side_threads(quick=quick),
            measure_gathers(quick=quick),
            measure_exposed(quick=quick),
            measure_wire_on_ranks(),
        )
