"""What the demo shows while it runs: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from isotherm.arrays import FloatArray
from isotherm.window import HeatWindow, overall_imbalance

_BLOCKS = "▁▂▃▄▅▆▇█"


class DemoProgress:
    """Shows one pass on ``console``: steps, tokens, the load of each rank, imbalance."""

    def __init__(self, console: Console, name: str, steps: int, tokens_per_step: int) -> None:
        self._console = console
        self._name = name
        self._steps = steps
        self._tokens_per_step = tokens_per_step
        self._window: HeatWindow | None = None
        self._live = Live(console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Callable[[int, HeatWindow | None], None]:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._console.print(f"{self._name}: {self._steps} steps", highlight=False)
        return self.watch

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def watch(self, step: int, window: HeatWindow | None) -> None:
        """Shows that ``step`` is done, and ``window`` if there is a new one."""
        self._window = window or self._window
        if self._console.is_terminal:
            self._live.update(self._picture(step))
        elif window is not None or step + 1 == self._steps or (step + 1) % 32 == 0:
            self._console.print(self._line(step), highlight=False)

    def _line(self, step: int) -> str:
        tokens = (step + 1) * self._tokens_per_step
        line = f"{self._name}: step {step + 1}/{self._steps}, {tokens:,} tokens"
        if self._window is None:
            return line
        imbalance = overall_imbalance(self._window.load_LG)
        bars = "".join(_BLOCKS[level] for level in _levels(self._window))
        return f"{line}, load per rank {bars}, imbalance {imbalance:.3f}"

    def _picture(self, step: int) -> RenderableType:
        parts: list[RenderableType] = [
            Text(self._line(step)),
            ProgressBar(total=self._steps, completed=step + 1, width=60),
        ]
        if self._window is not None:
            parts.append(_rank_bars(self._window))
        return Group(*parts)


def _shares(window: HeatWindow) -> FloatArray:
    load_G = window.load_LG.sum(axis=0)
    shares_G: FloatArray = load_G / max(float(load_G.mean()), 1e-9)
    return shares_G


def _levels(window: HeatWindow) -> list[int]:
    """Bars from half the mean (lowest) to one and a half (highest)."""
    levels_G = np.clip((_shares(window) - 0.5) * len(_BLOCKS), 0, len(_BLOCKS) - 1)
    return [int(level) for level in levels_G]


def _rank_bars(window: HeatWindow) -> Table:
    table = Table.grid(padding=(0, 1))
    for rank, share in enumerate(_shares(window)):
        colour = "red" if share > 1.15 else "yellow" if share > 1.05 else "green"
        table.add_row(f"rank {rank}", Text("█" * round(share * 30), style=colour), f"{share:.2f}")
    return table
