"""What moving takes from the engine's steps on the wall, and how much of it the shared cores explain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.bench.accounts import ACCOUNTS, num_spare_cores
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.ranks import RANKS

_STEPS_NOTE = (
    "Steps with work of about 40 ms; differences are those of the blocks' medians within a turn. Moving "
    "shares the cores with the heartbeat, the planner, the carrier and gloo of both processes; on two cores "
    "with two engines none is left over for them."
)
_ACCOUNTS_NOTE = (
    "Means of the same blocks, per step, averaged over both ranks; differences within a turn, with their "
    f"95 % intervals. others' CPU: of all threads but the engine's. {RANKS} engines that never pause fill "
    f"{RANKS} cores: each ms in which another thread of these processes runs is taken from one of them, "
    "whichever. So the steps of both grow together by what the others of both take, and on average over the "
    "ranks by that column. The ranks do not meet within a block; where they meet in each step the later one "
    "counts, and the growth lies between that and twice as much. Where there are more cores than engines "
    "the others have cores of their own, and explain nothing. beyond others: the difference on the wall "
    "minus theirs, what the interpreter's lock, caches and memory take beside, less what a rank is spared "
    "whose neighbour's block has ended. As a check, the kernel's own word: a step is what the engine's "
    "thread runs, what it could have run and had no core, whatever process had that, and what it slept, for "
    "the interpreter's lock above all. "
)
_BEYOND = "beyond others"
_ASLEEP = "asleep"


def steps_section(note: str, steps_ms: Mapping[str, FloatArray]) -> Section:
    """Wall time of steps by arm, [turns, steps]; ``note`` tells what was measured."""
    figures = [
        Figure.with_tail(name, "a step", "ms", samples.ravel().tolist()) for name, samples in steps_ms.items()
    ]
    blocks = {name: np.median(samples, axis=1) for name, samples in steps_ms.items()}
    for name in ("observing", "moving"):
        differences = blocks[name] - blocks["off"]
        figures.append(Figure.of_differences(name, "minus off", "ms", differences.tolist()))
        parts = 100 * differences / np.median(blocks["off"])
        figures.append(Figure.of_differences(name, "minus off, of a step", "%", parts.tolist()))
    section = Section("Engine's steps, wall time", note + _STEPS_NOTE, tuple(figures))
    lowest = section.figure("moving", "minus off, of a step").low
    target = Target("a step's wall time, moving - off, lower end of the 95 % interval, %", lowest, 0.0)
    return replace(section, targets=(target,))


def accounts_section(
    note: str, accounts_ms: Mapping[str, FloatArray], *, spare_cores: int | None = None
) -> Section:
    """Where steps' time went by arm, [turns, `ACCOUNTS`]. ``spare_cores``: cores without an engine; None:
    those of this machine."""
    spare = num_spare_cores(RANKS) if spare_cores is None else spare_cores
    columns = {name: _columns(values) for name, values in accounts_ms.items()}
    figures = [
        Figure.of(name, column, "ms", values.tolist())
        for name, by_column in columns.items()
        for column, values in by_column.items()
    ]
    for name in ("observing", "moving"):
        grown = {column: values - columns["off"][column] for column, values in columns[name].items()}
        wall, _, others, *_ = grown.values()
        grown[_BEYOND] = wall if spare else wall - others
        figures += [
            Figure.of_differences(f"{name} - off", column, "ms", values.tolist())
            for column, values in grown.items()
        ]
    section = Section("Where the steps' time went", _ACCOUNTS_NOTE + note, tuple(figures))
    target = Target(
        "a step's wall time, moving - off, beyond other threads, lower end of the 95 % interval, ms",
        section.figure("moving - off", _BEYOND).low,
        0.0,
    )
    return replace(section, targets=(target,))


def _columns(accounts_TA: FloatArray) -> dict[str, FloatArray]:
    """By name, in the order of `ACCOUNTS`, what the system tells of."""
    columns = dict(zip(ACCOUNTS, accounts_TA.T, strict=True))
    wall, engine, _, waiting = columns.values()
    columns[_ASLEEP] = wall - engine - waiting
    return {column: values for column, values in columns.items() if np.isfinite(values).all()}
