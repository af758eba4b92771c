"""`isotherm bench`: runs a benchmark and shows what it found."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

from rich.console import Console

from isotherm.bench.options import BenchOptions
from isotherm.errors import MissingExtraError


def run_bench(options: BenchOptions) -> int:
    """Runs the benchmark that ``options`` name; the exit code: 0, whatever its targets say, but 1 where a
    soak found anything wrong.

    Raises:
        MissingExtraError: torch is not installed.
        RuntimeError: a process of the benchmark failed.
        ValueError: the folder of traces lacks a file, or is given to another benchmark than plan and route.
    """
    if find_spec("torch") is None:
        raise MissingExtraError("torch", "torch")
    from isotherm.bench.heat import measure_heat
    from isotherm.bench.move import measure_moving
    from isotherm.bench.planning import measure_planning
    from isotherm.bench.routing import measure_routing
    from isotherm.bench.show import show_report, show_shortfalls, wide_console
    from isotherm.bench.soak import measure_soak

    stderr = Console(stderr=True, highlight=False)

    def tell(text: str) -> None:
        stderr.print(text, soft_wrap=True)

    if options.name == "plan":
        report = measure_planning(options.traces, quick=options.quick, tell=tell)
    elif options.name == "route":
        report = measure_routing(options.traces, quick=options.quick, tell=tell)
    elif options.traces is not None:
        raise ValueError(f"--traces is for bench plan and bench route: leave it out of bench {options.name}")
    elif options.name == "move":
        report = measure_moving(quick=options.quick, tell=tell)
    elif options.name == "soak":
        report = measure_soak(options.minutes, options.seed, options.pause_seconds, tell)
    else:
        report = measure_heat(quick=options.quick, tell=tell)
    is_wrong = options.name == "soak" and not all(target.ok for target in report.targets)
    if options.json:
        json.dump(report.as_dict(), sys.stdout)
        sys.stdout.write("\n")
        return int(is_wrong)
    console = wide_console()
    show_report(report, console)
    show_shortfalls([report], console)
    return int(is_wrong)
