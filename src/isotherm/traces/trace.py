"""Heat over time, wherever it came from: a header and windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.placement import Placement
from isotherm.traces.header import HeatHeader
from isotherm.window import HeatWindow


@dataclass(frozen=True, eq=False)
class HeatTrace(Sequence[HeatWindow]):
    """The windows of a file, by index or one after another, as `Sequence`.

    Attributes:
        header: what holds for all windows.
        windows: read when asked for where the file is ours, in memory otherwise. At least one.
        notes: what a reader left out or took for granted, in words: rows without heat, rounds cut short.
        placements: (window, placement): from that window on, slots held this; ascending.
    """

    header: HeatHeader
    windows: Sequence[HeatWindow]
    notes: tuple[str, ...] = ()
    placements: tuple[tuple[int, Placement], ...] = ()

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

    def merged(self) -> HeatWindow:
        """All windows as one with one slice: what to plan on. Reads every window, one at a time; has slot
        loads where every window has."""
        heat_KLE: Int64Array | None = None
        tokens_K = np.zeros(len(self.header.kinds), np.int64)
        load_LGS: Int64Array | None = None
        with_loads, first, last = True, 0, 0
        for index, window in enumerate(self):
            part_KLE = window.heat_KSLE.sum(axis=1)
            heat_KLE = part_KLE if heat_KLE is None else heat_KLE + part_KLE
            tokens_K = tokens_K + window.tokens_K
            with_loads = with_loads and window.slot_load_LGS is not None
            if with_loads and window.slot_load_LGS is not None:
                load_LGS = window.slot_load_LGS if load_LGS is None else load_LGS + window.slot_load_LGS
            first, last = (window.start_step if index == 0 else first), window.end_step
        if heat_KLE is None:
            raise ValueError("there are no windows to merge")
        loads = load_LGS if with_loads else None
        return HeatWindow(heat_KLE[:, None], loads, (first, last), tokens_K, self.layer_ids)

    def placement_in_force(self, index: int) -> Placement | None:
        """What slots held while window ``index`` was collected; None where nobody said."""
        known = [placement for start, placement in self.placements if start <= index]
        return known[-1] if known else None
