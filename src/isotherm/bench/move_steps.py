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
    f"95 % intervals. {RANKS} engines that never pause fill {RANKS} cores: each ms in which another thread "
    "of these processes runs is taken from one of them, whichever. So the steps of both grow together by "
    "what the other threads of both take, and on average over the ranks by the column 'other threads'. The "
    "ranks do not meet within a block; where they meet in each step the later one counts, and the growth "
    "lies between that and twice as much. Where there are more cores than engines the other threads have "
    "cores of their own, and explain nothing. 'beyond other threads' is the difference on the wall minus "
    "theirs: what the interpreter's lock, caches and memory take beside, less what a rank is spared whose "
    "neighbour's block has ended. 'waiting for a core' is the kernel's own word, as a check: how long the "
    "engine's thread could have run and had no core, for the sake of whatever process."
)
_BEYOND = "beyond other threads"


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


def accounts_section(accounts_ms: Mapping[str, FloatArray], *, spare_cores: int | None = None) -> Section:
    """Where steps' time went by arm, [turns, `ACCOUNTS`]. ``spare_cores``: cores without an engine; None:
    those of this machine."""
    spare = num_spare_cores(RANKS) if spare_cores is None else spare_cores
    told = [index for index in range(len(ACCOUNTS)) if np.isfinite(accounts_ms["off"][:, index]).all()]
    figures = [
        Figure.of(name, ACCOUNTS[index], "ms", values[:, index].tolist())
        for name, values in accounts_ms.items()
        for index in told
    ]
    for name in ("observing", "moving"):
        row, grown = f"{name} - off", accounts_ms[name] - accounts_ms["off"]
        figures += [
            Figure.of_differences(row, ACCOUNTS[index], "ms", grown[:, index].tolist()) for index in told
        ]
        beyond = grown[:, 0] - (0.0 if spare else 1.0) * grown[:, 2]
        figures.append(Figure.of_differences(row, _BEYOND, "ms", beyond.tolist()))
    section = Section("Where the steps' time went", _ACCOUNTS_NOTE, tuple(figures))
    target = Target(
        "a step's wall time, moving - off, beyond other threads, lower end of the 95 % interval, ms",
        section.figure("moving - off", _BEYOND).low,
        0.0,
    )
    return replace(section, targets=(target,))
