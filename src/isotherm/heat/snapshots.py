"""Copies of the running totals at agreed steps, on their way to the host."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from isotherm.control import Span, no_span
from isotherm.heat.aside import DeviceGather
from isotherm.heat.totals import Totals
from isotherm.status import Memory
from isotherm.streams import Backend, Event, Stream

BUFFERS = 4
"""Snapshots that may be under way or waiting for slower ranks at once."""


@dataclass(frozen=True, eq=False)
class _Buffer:
    device: torch.Tensor
    host: torch.Tensor


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The totals after ``step`` steps.

    ``host`` (int32) may be read once ``landed`` is done, until the snapshot is dropped: this rank's rows
    of totals, or what was gathered of all ranks where the device gathers. ``tokens_K`` are this rank's
    tokens per kind since the start, as far as the host was told of them.
    """

    step: int
    tokens_K: tuple[int, ...]
    buffer: _Buffer
    landed: Event

    @property
    def host(self) -> torch.Tensor:
        return self.buffer.host


class SnapshotRing:
    """A fixed number of snapshot buffers.

    The engine's thread takes snapshots; the heartbeat's reads and drops them. Buffers go round between the
    two, and each touches only what it holds.
    """

    def __init__(
        self,
        totals: Totals,
        backend: Backend,
        *,
        gather: DeviceGather | None = None,
        span: Span = no_span,
    ) -> None:
        self._totals = totals
        self._gather = gather
        self._span = span
        # Where totals lie in host memory and nothing is gathered on the way, the copy of them has landed.
        self._lands_at_once = gather is None and not backend.queues_work
        self._free = backend.handoff([self._make_buffer(backend) for _ in range(BUFFERS)])
        self._taken = backend.handoff(list[Snapshot]())
        self._held: deque[Snapshot] = deque()  # the heartbeat's own
        self.skipped = 0

    def _make_buffer(self, backend: Backend) -> _Buffer:
        rows_MW = self._totals.rows_MW
        landing = tuple(rows_MW.shape) if self._gather is None else (self._gather.words,)
        host = backend.pinned_empty(landing, rows_MW.dtype)
        return _Buffer(host if self._lands_at_once else torch.zeros_like(rows_MW), host)

    @staticmethod
    def memory(row_bytes: int, landing_bytes: int, *, lands_at_once: bool) -> Memory:
        """The buffers: each holds all rows on the device, and on the host what lands, which is the same
        where it ``lands_at_once``."""
        device_bytes = 0 if lands_at_once else BUFFERS * row_bytes
        return Memory(device_bytes=device_bytes, pinned_bytes=BUFFERS * landing_bytes)

    def try_take(self, step: int, tokens_K: tuple[int, ...], main: Stream, side: Stream | None) -> bool:
        """Enqueues a copy of the totals, each row behind what its stream has counted so far, and from there
        on ``side`` to the host; None: all on ``main``. False where no buffer is free: the snapshot is
        skipped, and nothing is lost, since totals only grow. Never waits."""
        buffer = self._free.try_take()
        if buffer is None:
            self.skipped += 1
            if self._gather is not None:
                # The other ranks call: this one must too, and says that it has nothing.
                self._gather.submit_nothing(side or main)
            return False
        if self._lands_at_once:
            with self._span(f"snapshot of step {step}", "main"):
                _submit_copy(main, self._totals.rows_MW, buffer.host)
            self._taken.put(Snapshot(step, tokens_K, buffer, main.record_event()))
            return True
        totals, rows = self._totals, self._totals.micro_batches
        _submit_copy(main, totals.main_MW, buffer.device[:rows])
        if side is not None:
            # The side stream reads what the counting stream has just been told to write.
            side.wait_event(main.record_event())
            if len(totals.aside_MW):
                _submit_copy(side, totals.aside_MW, buffer.device[rows:])
        lander = side or main
        if self._gather is not None:
            self._gather.submit(lander, step, tokens_K, buffer.device)
        source = buffer.device if self._gather is None else self._gather.gathered

        def land() -> None:
            with self._span(f"snapshot of step {step}", "heat stream"):
                buffer.host.copy_(source, non_blocking=True)

        lander.submit(land, reads=[source], writes=[buffer.host])
        self._taken.put(Snapshot(step, tokens_K, buffer, lander.record_event()))
        return True

    def landed(self) -> tuple[Snapshot, ...]:
        """Snapshots whose bytes are on the host, oldest first. Heartbeat thread only; never waits."""
        while (snapshot := self._taken.try_take()) is not None:
            self._held.append(snapshot)
        return tuple(snapshot for snapshot in self._held if snapshot.landed.query())

    def drop_below(self, step: int) -> None:
        """Frees the buffers of snapshots older than ``step``. Heartbeat thread only."""
        while self._held and self._held[0].step < step and self._held[0].landed.query():
            self._free.put(self._held.popleft().buffer)

    def drop(self, snapshot: Snapshot) -> None:
        """Frees the buffer of one that landed. Heartbeat thread only."""
        self._held.remove(snapshot)
        self._free.put(snapshot.buffer)


def _submit_copy(stream: Stream, source: torch.Tensor, target: torch.Tensor) -> None:
    def copy() -> None:
        target.copy_(source, non_blocking=True)

    stream.submit(copy, reads=[source], writes=[target])
