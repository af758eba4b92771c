"""Windows added up, one at a time."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.traces.header import HeatHeader
from isotherm.window import HeatWindow


class WindowSum:
    """Adds windows of one header to one window with one slice, in bounded memory."""

    def __init__(self, header: HeatHeader) -> None:
        self._header = header
        self._heat_KLE = np.zeros((len(header.kinds), len(header.layer_ids), header.experts), np.int64)
        self._tokens_K = np.zeros(len(header.kinds), np.int64)
        self._load_LGS: Int64Array | None = None
        self._steps: tuple[int, int] | None = None
        self._without_loads = False

    def add(self, window: HeatWindow) -> None:
        self._heat_KLE += window.heat_KSLE.sum(axis=1)
        self._tokens_K += window.tokens_K
        first = window.start_step if self._steps is None else self._steps[0]
        self._steps = (first, window.end_step)
        if window.slot_load_LGS is None:
            self._without_loads = True
        elif self._load_LGS is None:
            self._load_LGS = window.slot_load_LGS.copy()
        else:
            self._load_LGS += window.slot_load_LGS

    def total(self) -> HeatWindow:
        """From the first step to the last; has slot loads where every window has.

        Raises:
            ValueError: no window was added.
        """
        if self._steps is None:
            raise ValueError("there is no window to add up")
        return HeatWindow(
            heat_KSLE=self._heat_KLE[:, None],
            slot_load_LGS=None if self._without_loads else self._load_LGS,
            slice_steps=self._steps,
            tokens_K=self._tokens_K,
            layer_ids=self._header.layer_ids,
        )
