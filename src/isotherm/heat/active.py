"""The steps in which an expert had a token: seen at the end of each, by what was counted since the last."""

from __future__ import annotations

from collections.abc import Callable

import torch

from isotherm.heat.kernels import mark_grown
from isotherm.heat.totals import Totals, TotalsLayout
from isotherm.jit import entry
from isotherm.status import Memory
from isotherm.streams import Stream


class ActiveSteps:
    """Adds one to an expert's count in ``totals.active_LE`` for each step in which this rank counted a token
    of its own for it, in any micro-batch. Costs a pass over the totals at the end of each step."""

    def __init__(self, totals: Totals) -> None:
        self._heat_MKLE = totals.heat_MKLE[: totals.micro_batches]
        self._active_LE = totals.active_LE
        self._seen_LE = torch.zeros_like(self._active_LE, memory_format=torch.contiguous_format)
        self._now_LE = torch.zeros_like(self._seen_LE)
        self._mark: Callable[..., None] | None = None
        if self._heat_MKLE.is_cpu:
            self._mark = entry(mark_grown)
            row_words, cells = self._heat_MKLE.stride(0), self._seen_LE.numel()
            rows, kinds = self._heat_MKLE.shape[:2]
            self._numbers = (self._heat_MKLE.data_ptr(), rows, row_words, kinds, cells)
            places = (self._now_LE, self._seen_LE, self._active_LE)
            self._addresses = tuple(each.data_ptr() for each in places)

    @staticmethod
    def memory(layout: TotalsLayout) -> Memory:
        """Its own buffers; the counts stand in the totals."""
        return Memory(device_bytes=8 * layout.shape.layers * layout.shape.experts if layout.active else 0)

    def mark(self, main: Stream) -> None:
        """Ends a step, behind what the engine's stream has counted. Never waits."""
        main.submit(
            self._mark_here, reads=[self._heat_MKLE], writes=[self._active_LE, self._seen_LE, self._now_LE]
        )

    def _mark_here(self) -> None:
        if self._mark is not None:
            self._mark(*self._numbers, *self._addresses)
            return
        torch.sum(self._heat_MKLE, (0, 1), dtype=torch.int32, out=self._now_LE)
        # 1 where it differs, 0 elsewhere, in the memory of what was seen before.
        torch.ne(self._now_LE, self._seen_LE, out=self._seen_LE)
        self._active_LE.add_(self._seen_LE)
        self._seen_LE.copy_(self._now_LE)
