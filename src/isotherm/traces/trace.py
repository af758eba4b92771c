"""Heat over time, wherever it came from: a header and windows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

from isotherm.arrays import Int64Array
from isotherm.placement import Placement
from isotherm.traces.header import HeatHeader
from isotherm.traces.sums import WindowSum
from isotherm.window import HeatWindow

Track: TypeAlias = Callable[[Sequence[HeatWindow]], Iterable[HeatWindow]]
"""Gives back windows as they are asked for, and may show progress."""

SLICES = 16
"""Of a trace whose drift a policy looks at."""


@dataclass(frozen=True, eq=False)
class HeatTrace(Sequence[HeatWindow]):
    """The windows of a file, by index or one after another, as `Sequence`.

    Attributes:
        header: what holds for all windows.
        windows: read when asked for where the file is ours, in memory otherwise. At least one.
        notes: what a reader left out or took for granted, in words: rows without heat, rounds cut short.
        placements: (window, placement): from that window on, slots held this; ascending.
        times: when each window ended, seconds since 1970, None where nobody said; empty where nobody said
            it of any.
    """

    header: HeatHeader
    windows: Sequence[HeatWindow]
    notes: tuple[str, ...] = ()
    placements: tuple[tuple[int, Placement], ...] = ()
    times: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if self.times and len(self.times) != len(self.windows):
            raise ValueError(f"{len(self.times)} times do not fit {len(self.windows)} windows: give one each")

    def __len__(self) -> int:
        return len(self.windows)

    @overload
    def __getitem__(self, index: int) -> HeatWindow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[HeatWindow]: ...
    def __getitem__(self, index: int | slice) -> HeatWindow | Sequence[HeatWindow]:
        return self.windows[index]

    def __iter__(self) -> Iterator[HeatWindow]:
        return iter(self.windows)

    @property
    def layer_ids(self) -> tuple[int, ...]:
        return self.header.layer_ids

    @property
    def heat_LE(self) -> Int64Array:
        """Tokens per layer and expert, all windows, kinds and slices. Reads every window."""
        return self.merged().heat_LE

    @property
    def heat_SLE(self) -> Int64Array:
        """Tokens per slice of time, up to ``SLICES``, layer and expert, all kinds. Reads every window."""
        return self.merged(slices=SLICES).heat_SLE

    def merged(self, *, slices: int = 1, track: Track = iter) -> HeatWindow:
        """All windows as one: what to plan on. Reads every window, one at a time; has slot loads where every
        window has them. ``slices``: parts of about equally many windows, so that drift stays visible.
        ``track`` is given the windows and gives them back, showing how far it came."""
        added = WindowSum(self.header, windows=len(self), slices=slices)
        for window in track(self):
            added.add(window)
        return added.total()

    def placement_in_force(self, index: int) -> Placement | None:
        """What slots held while window ``index`` was collected; None where nobody said."""
        known = [placement for start, placement in self.placements if start <= index]
        return known[-1] if known else None
