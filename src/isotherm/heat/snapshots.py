"""Copies of the running totals at agreed steps, on their way to the host."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from isotherm.control import Span, no_span
from isotherm.streams import Backend, Event, Stream


@dataclass(frozen=True)
class _Buffer:
    device: torch.Tensor
    host: torch.Tensor


@dataclass(frozen=True)
class Snapshot:
    """The totals after ``step`` steps. ``flat`` (int32, host) may be read once ``landed`` is done, until
    the snapshot is dropped. ``tokens_K`` are this rank's tokens per kind since the start."""

    step: int
    tokens_K: tuple[int, ...]
    buffer: _Buffer
    landed: Event

    @property
    def flat(self) -> torch.Tensor:
        return self.buffer.host


class SnapshotRing:
    """A fixed number of snapshot buffers.

    Two threads use it: the engine's takes snapshots, the heartbeat's reads and drops them. What passes
    between them passes through two deques, whose append and popleft are atomic.
    """

    def __init__(
        self, totals: torch.Tensor, backend: Backend, buffers: int = 4, span: Span = no_span
    ) -> None:
        self._totals = totals
        self._span = span
        self.buffers = buffers
        self._free = deque(
            _Buffer(torch.empty_like(totals), backend.pinned_empty(totals.shape, totals.dtype))
            for _ in range(buffers)
        )
        self._taken: deque[Snapshot] = deque()
        self.skipped = 0

    def try_take(self, step: int, tokens_K: tuple[int, ...], counting: Stream, side: Stream) -> bool:
        """Enqueues a copy of the totals: on ``counting``, behind what was counted so far, then on
        ``side`` to the host. False where no buffer is free: the snapshot is skipped, and nothing is
        lost, since totals only grow. Never waits."""
        try:
            buffer = self._free.popleft()
        except IndexError:
            self.skipped += 1
            return False
        totals = self._totals
        counting.submit(lambda: _copy(totals, buffer.device), reads=[totals], writes=[buffer.device])
        if side is not counting:
            # The host copy reads what the counting stream has just been told to write.
            side.wait_event(counting.record_event())

        def land() -> None:
            with self._span(f"snapshot of step {step}", "heat stream"):
                _copy(buffer.device, buffer.host)

        side.submit(land, reads=[buffer.device], writes=[buffer.host])
        self._taken.append(Snapshot(step, tokens_K, buffer, side.record_event()))
        return True

    def landed(self) -> tuple[Snapshot, ...]:
        """Snapshots whose bytes are on the host, oldest first. Heartbeat thread only; never waits."""
        held = tuple(self._taken)
        return tuple(snapshot for snapshot in held if snapshot.landed.query())

    def drop_below(self, step: int) -> None:
        """Frees the buffers of snapshots older than ``step``. Heartbeat thread only."""
        while self._taken and self._taken[0].step < step and self._taken[0].landed.query():
            self._free.append(self._taken.popleft().buffer)


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(source, non_blocking=True)
