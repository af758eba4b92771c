"""Runs a program under many schedules, and says how to repeat the one that failed.

    python -m isotherm.testing.explore --schedules 5000

runs the programs of `isotherm.testing.programs`, which drive Isotherm's own code.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from isotherm.testing.schedules import PLAIN, Replayed, Schedule, ordinary_schedules
from isotherm.testing.simulated import Simulation

Program: TypeAlias = Callable[[Simulation], None]
"""Runs inside a simulation, the same way whenever it is given the same answers by its schedule. It raises
``AssertionError`` where a result is wrong."""


class ScheduleError(AssertionError):
    """A program failed under one schedule: which, why, and what had happened."""


@dataclass(frozen=True)
class Coverage:
    """How many orders were run, and whether there are no others."""

    orders: int
    is_complete: bool


def run(program: Program, schedule: Schedule) -> Simulation:
    """Runs ``program`` once, to the end of all that it enqueued.

    Raises:
        ScheduleError: it raised, or the detector found something.
    """
    simulation = Simulation(schedule)
    try:
        with simulation:
            program(simulation)
        simulation.check()
    except Exception as error:
        name = getattr(program, "__name__", repr(program))
        timeline = "" if simulation.findings else f"\n\n{simulation.detector.timeline.text()}"
        raise ScheduleError(
            f"{name} under {schedule!r}: {type(error).__name__}: {error}{timeline}\n\n"
            f"To repeat it: run({name}, {schedule!r})"
        ) from error
    return simulation


def run_under(program: Program, schedules: Iterable[Schedule]) -> int:
    """Runs ``program`` under each schedule, and returns how many there were. Raises as ``run`` does, at
    the first that fails."""
    number = 0
    for schedule in schedules:
        run(program, schedule)
        number += 1
    return number


def run_every_order(program: Program, *, max_orders: int) -> Coverage:
    """Runs ``program`` in every order there is, depth first, but in no more than ``max_orders``. Raises
    as ``run`` does, at the first that fails."""
    prefix: tuple[int, ...] | None = ()
    orders = 0
    while prefix is not None and orders < max_orders:
        schedule = Replayed(prefix)
        run(program, schedule)
        orders += 1
        prefix = schedule.next_prefix()
    return Coverage(orders, prefix is None)


def explore_programs(arguments: Sequence[str] | None = None) -> int:
    """The long run: every program under the plain schedules and under ``--schedules`` seeds in all."""
    from isotherm.testing.programs import PROGRAMS

    parser = argparse.ArgumentParser(
        prog="python -m isotherm.testing.explore",
        description="Runs Isotherm's own code on a simulated device, in many orders.",
        epilog="example: python -m isotherm.testing.explore --schedules 5000",
    )
    parser.add_argument("--schedules", type=int, default=1000, help="how many, over all programs")
    parser.add_argument("--first-seed", type=int, default=0, help="where the seeds begin")
    chosen = parser.parse_args(arguments)
    share = -(-chosen.schedules // len(PROGRAMS))
    for program in PROGRAMS:
        started = time.perf_counter()
        seeds = range(chosen.first_seed, chosen.first_seed + max(share - len(PLAIN), 0))
        try:
            number = run_under(program, ordinary_schedules(seeds))
        except ScheduleError as error:
            sys.stdout.write(f"{error}\n")
            return 1
        seconds = time.perf_counter() - started
        sys.stdout.write(f"{program.__name__}: {number} schedules, nothing found, {seconds:.1f} s\n")
    return 0


if __name__ == "__main__":
    sys.exit(explore_programs())
