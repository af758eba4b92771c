"""Windows added up, one at a time."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.traces.header import LARGEST_SUM, ON_REQUEST, HeatHeader
from isotherm.window import HeatWindow


class WindowSum:
    """Adds windows of one header to one window, in bounded memory.

    ``windows``: how many will come, where they are to be ``slices`` of about equally many each; there are
    fewer slices where there are fewer windows.
    """

    def __init__(self, header: HeatHeader, *, windows: int = 1, slices: int = 1) -> None:
        self._header = header
        self._windows, self._slices = windows, min(slices, windows)
        shape_KSLE = (len(header.kinds), self._slices, len(header.layer_ids), header.experts)
        self._heat_KSLE = np.zeros(shape_KSLE, np.int64)
        self._tokens_K = np.zeros(len(header.kinds), np.int64)
        self._on_request: dict[str, Int64Array] = {}
        self._missing: set[str] = set()
        self._added = 0
        self._heat = 0.0
        self._starts: list[int] = []
        self._end = 0

    def add(self, window: HeatWindow) -> None:
        """Raises ValueError where the sum of all counts would not fit an int64."""
        place = min(self._added * self._slices // self._windows, self._slices - 1)
        self._added += 1
        self._heat += float(window.heat_KSLE.sum(dtype=np.float64))
        if self._heat > LARGEST_SUM:
            raise ValueError(f"the counts of the first {self._added} windows add up to more than 2^62")
        if place == len(self._starts):
            self._starts.append(window.start_step)
        self._heat_KSLE[:, place] += window.heat_KSLE.sum(axis=1)
        self._tokens_K += window.tokens_K
        self._end = window.end_step
        for name in ON_REQUEST:
            counts: Int64Array | None = getattr(window, name)
            if counts is None:
                self._missing.add(name)
            elif name in self._on_request:
                self._on_request[name] += counts
            else:
                self._on_request[name] = counts.copy()

    def total(self) -> HeatWindow:
        """From the first step to the last; has the counts by rank, step and node that every window has.

        Raises:
            ValueError: no window was added.
        """
        if not self._added:
            raise ValueError("there is no window to add up")
        found = {name: counts for name, counts in self._on_request.items() if name not in self._missing}
        active_LE = found.get("active_steps_LE")
        if active_LE is not None and active_LE.max() > self._end - self._starts[0]:
            del found["active_steps_LE"]  # steps were counted anew in between, as after a restart
        return HeatWindow(
            heat_KSLE=self._heat_KSLE,
            slice_steps=(*self._starts, self._end),
            tokens_K=self._tokens_K,
            layer_ids=self._header.layer_ids,
            **{name: found.get(name) for name in ON_REQUEST},
        )
