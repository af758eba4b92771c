"""The demo's options: the command line is made from this class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from isotherm.config import Mode

DEFAULT_RANKS = 8


@dataclass(frozen=True)
class DemoOptions:
    """Runs a Mixture-of-Experts model over several processes and balances it while it serves real text.

    Halfway the text changes from one kind to another, heat shifts, and Isotherm answers: by new shares within
    a window or two, then by moves. At the end the same engine runs the same batches with balancing off, and
    every logit must be equal, bit for bit; else the exit code is 1. Started by torchrun, each process is one
    rank.

    Examples:
        isotherm demo
        isotherm demo --ranks 4 --steps 80 --text notes.md program.py
        torchrun --nnodes 2 --nproc-per-node 4 -m isotherm demo
    """

    ranks: int | None = None
    """Processes, each with its own slots and its own tokens. Default: 8, or what torchrun started."""
    redundant: Annotated[int | None, tyro.conf.arg(aliases=("--slots",))] = None
    """Redundant slots per layer, over all ranks. Default: a quarter of the experts."""
    steps: int = 128
    """Forward passes; the text changes after half of them."""
    text: tuple[Path, ...] = ()
    """Text files, one kind of traffic each. Default: documentation and source of this Python."""
    model: Path | None = None
    """A folder with a Hugging Face MoE model that reads bytes. Default: the one that ships."""
    policy: str = "incremental"
    """The planner's policy."""
    mode: Mode = "full"
    """What the balancer may do."""
    seed: int = 0
    """Which passages of the text are read."""
    sequences: int = 8
    """Sequences per rank and step."""
    length: int = 96
    """Bytes per sequence."""
    window: int = 12
    """Steps in a window of heat; even."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the result as JSON on stdout instead of the table."""
    out: Path = Path("isotherm-demo")
    """Folder for demo.png and result.json."""
    timeline: Path | None = None
    """Write a Chrome trace here: a track per rank and stream."""
    sabotage: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Publish one slot before its weights arrived: the check must then fail."""
    port: int | None = None
    """Port on this machine where the ranks meet. Default: any free one."""

    def __post_init__(self) -> None:
        for name in ("steps", "sequences", "length", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: give a positive number")
        if self.ranks is not None and self.ranks < 1:
            raise ValueError(f"--ranks {self.ranks}: give a positive number")
        if self.window % 2:
            raise ValueError(f"--window {self.window}: give an even number, its halves are slices")
        if self.steps < 2 * self.window:
            raise ValueError(
                f"--steps {self.steps}: give {2 * self.window} or more, a window of {self.window} before the "
                "text changes and one after it"
            )


Verdict = Literal["equal", "different", "not checked"]
