"""All measurements of the planner, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from isotherm import planner
from isotherm.bench.figures import Report
from isotherm.bench.machine import describe_machine
from isotherm.bench.plan_again import measure_changes, measure_noise
from isotherm.bench.plan_engines import measure_engines
from isotherm.bench.plan_fresh import measure_fixture, measure_fresh
from isotherm.bench.plan_growth import measure_growth
from isotherm.bench.plan_heat import read_heats
from isotherm.bench.plan_life import measure_other_threads, measure_start


def measure_planning(traces: Path | None, *, quick: bool, tell: Callable[[str], None]) -> Report:
    """What each policy reaches, moves and takes on this machine; ``tell`` hears what is measured next.

    ``traces``: a folder of real statistics; None: drawn heat. ``quick``: a few samples of everything.

    Raises:
        ValueError: the folder lacks a file, or a file is not what it should be.
        RuntimeError: a process of the benchmark failed.
    """
    heats = read_heats(traces)
    if quick:
        heats = heats.first_layers(2)
    begun, machine = time.monotonic(), describe_machine()
    tell("compiling what is not compiled yet ...")
    planner.warm_up()
    tell("every policy, from nothing ...")
    sections = [measure_fresh(heats, quick=quick), measure_fixture()]
    tell("as each engine serves it ...")
    sections.append(measure_engines(heats, quick=quick))
    tell("every policy, after a change of traffic; noise alone ...")
    sections += [measure_changes(heats, quick=quick), measure_noise(heats, quick=quick)]
    tell("growth with ranks and layers ...")
    sections.append(measure_growth(quick=quick))
    tell("other threads, and new processes ...")
    sections += [measure_other_threads(heats, quick=quick), measure_start(quick=quick)]
    return Report("plan", machine, time.monotonic() - begun, tuple(sections))
