"""The options of `isotherm bench`: the command line is made from this class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

BenchName = Literal["heat", "move", "plan", "route", "soak"]


@dataclass(frozen=True)
class BenchOptions:
    """Measures what Isotherm costs on this machine and holds it to its targets.

    heat: mapping and counting on the engine's thread beside torch's own look-up, what side threads do, what a
    gather takes from the engine's steps, its latency, bytes and memory; for 58 layers of 256 experts. Two
    processes run on this machine for a minute or two.

    move: what moving weights takes from the engine's thread and its steps, and how long a plan takes, in two
    processes.

    plan: balancedness, bound, moves and time of every policy: from nothing, after a change of traffic, under
    noise; how time grows; what other threads feel. A few minutes.

    route: what dispatch achieves of a plan, batch by batch, beside other engines' rules; stale plans with
    shares one window late; what mapping, choosing and counting take beside torch's own look-up. A minute.

    soak: two processes serve shifting traffic while one thing after another goes wrong; after each, counts,
    replicas and answers are checked, and at the end memory and threads. Exit 1 where anything was wrong.

    Examples:
        isotherm bench heat
        isotherm bench plan --traces statistics/
        isotherm bench route --traces statistics/
        isotherm bench soak --minutes 10
        isotherm bench heat --json > heat.json
    """

    name: Annotated[BenchName, tyro.conf.Positional]
    """What to measure."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print figures and targets as JSON on stdout instead of the tables."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Take a few samples only: shows that everything runs, and its figures mean little."""
    traces: Path | None = None
    """plan, route: a folder of JSON files {"logical_count": [layers][experts]}, which are named
    decode_in1000out1000.json, prefill_in1024.json and decode_in500out1500.json as SGLang published them for
    DeepSeek-V3. Default: heat drawn as uneven as that."""
    minutes: float = 10.0
    """soak: how long it runs; a part of a minute too."""
    seed: int | None = None
    """soak: draws traffic, faults and delays again as another run said that it drew them. Default: another
    one each time."""
    pause_seconds: float = 1.0
    """soak: how long a rank is stopped where that is what goes wrong."""
