"""New tables on their way from the heartbeat's thread to the engine's stream, without anybody waiting."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from isotherm.router.layout import TablesLayout
from isotherm.router.tables import RoutingTables
from isotherm.streams import Backend, Completion

BUFFERS = 2
"""Tables that may be under way at once: one being copied by the device, one being filled."""


@dataclass(frozen=True, eq=False)
class Staged:
    """Tables in pinned memory. Whoever holds it loads it, in the order of staging, once."""

    block: torch.Tensor


class Staging:
    """Pinned buffers that go round: filled by the heartbeat's thread, read by the engine's stream."""

    def __init__(self, layout: TablesLayout, backend: Backend) -> None:
        self._layout = layout
        self._backend = backend
        self._returned = backend.handoff(list[tuple[Staged, Completion]]())
        # The heartbeat's own.
        self._free = deque(
            Staged(backend.pinned_empty((layout.nbytes,), torch.uint8)) for _ in range(BUFFERS)
        )
        self._read: deque[tuple[Staged, Completion]] = deque()

    def try_stage(self, tables: RoutingTables) -> Staged | None:
        """Copies ``tables`` into a free buffer; None where the device has still to read all of them.

        Raises:
            ValueError: tables of another shape.
            StreamError: the engine's stream failed.
        """
        while (returned := self._returned.try_take()) is not None:
            self._read.append(returned)
        while self._read and self._read[0][1].done():
            self._free.append(self._read.popleft()[0])
        if not self._free:
            return None
        staged = self._free[0]
        # Before the buffer is taken: tables that do not fit must not cost one.
        self._backend.caller_stream().submit(
            lambda: self._layout.fill(staged.block, tables), writes=[staged.block]
        )
        return self._free.popleft()

    def load(self, staged: Staged, block: torch.Tensor) -> None:
        """Enqueues the copy into ``block`` on the engine's stream, and hands the buffer back."""
        main = self._backend.main_stream()
        main.submit(
            lambda: _copy(staged.block, block),
            reads=[staged.block],
            writes=[block],
        )
        self._returned.put((staged, Completion(main.record_event(), staged)))


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)
