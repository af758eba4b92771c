"""All measurements of routing, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from isotherm import planner, router
from isotherm.bench.figures import Report
from isotherm.bench.machine import describe_machine
from isotherm.bench.plan_heat import read_heats
from isotherm.bench.route_achieved import measure_achieved
from isotherm.bench.route_locality import measure_locality
from isotherm.bench.route_stale import measure_stale
from isotherm.bench.route_time import measure_time


def measure_routing(traces: Path | None, *, quick: bool, tell: Callable[[str], None]) -> Report:
    """What dispatch achieves of plans, what shares make of stale ones, and what it takes on this machine;
    ``tell`` hears what is measured next.

    ``traces``: a folder of real statistics; None: drawn heat. ``quick``: a few samples of everything.

    Raises:
        ValueError: the folder lacks a file, or a file is not what it should be.
    """
    heats = read_heats(traces)
    if quick:
        heats = heats.first_layers(2)
    begun, machine = time.monotonic(), describe_machine()
    tell("compiling what is not compiled yet ...")
    planner.warm_up()
    router.warm_up()
    tell("time per layer ...")
    sections = [measure_time(quick=quick)]
    tell("batch by batch: ours and what engines do ...")
    sections.append(measure_achieved(heats, quick=quick))
    tell("stale plans, with shares one window late ...")
    sections.append(measure_stale(heats, quick=quick))
    tell("pairs that cross nodes, and what sparing them costs ...")
    sections.append(measure_locality(heats, quick=quick))
    return Report("route", machine, time.monotonic() - begun, tuple(sections))
