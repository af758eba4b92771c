"""The options of `isotherm bench`: the command line is made from this class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

BenchName = Literal["heat"]


@dataclass(frozen=True)
class BenchOptions:
    """Measures what Isotherm costs on this machine and holds it to its targets.

    heat: mapping and counting on the engine's thread beside torch's own look-up, what side threads do, what a
    gather takes from the engine's steps, its latency, bytes and memory; for 58 layers of 256 experts. Two
    processes run on this machine for a minute or two.

    Examples:
        isotherm bench heat
        isotherm bench heat --json > heat.json
    """

    name: Annotated[BenchName, tyro.conf.Positional]
    """What to measure."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print figures and targets as JSON on stdout instead of the tables."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Take a few samples only: shows that everything runs, and its figures mean little."""
