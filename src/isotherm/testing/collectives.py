"""Collectives of the simulated device: on a communicator's own lane, between two edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

from isotherm.testing.clocks import Kind
from isotherm.testing.device import Device
from isotherm.testing.queues import Event, Queue
from isotherm.testing.tensors import known, touches_of

Peers: TypeAlias = Callable[[int, int, torch.Tensor], torch.Tensor]
"""``peers(call, peer, mine)``: what the ``peer``-th other rank, from 0, gives to the ``call``-th collective
of this group, from 0, where this rank gives ``mine``. Called when the collective runs."""


class Work:
    """A collective under way. Until ``wait`` nothing on the stream is ordered behind it."""

    def __init__(self, device: Device, done: Event) -> None:
        self._device = device
        self._done = done

    def wait(self) -> None:
        """The current stream waits; the host does not."""
        self._device.hold(self._device.stream, self._done)


class CollectiveGroup:
    """Collectives enqueued behind the current stream, which waits for each; `isotherm.heat` takes it as
    its group over device memory.

    The other ranks come first: this rank is the last of ``size`` in what is gathered.
    """

    def __init__(self, device: Device, size: int, peers: Peers) -> None:
        self.size = size
        self._device = device
        self._peers = peers
        self._lane: Queue = device.add_queue("communicator", Kind.COMMUNICATOR)
        self._calls = 0

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sums ``tensor`` over the ranks, in place."""
        self.start_all_reduce(tensor).wait()

    def all_gather(self, gathered: torch.Tensor, tensor: torch.Tensor) -> None:
        """``tensor`` of every rank, one behind the other."""
        raw, out = known(tensor).raw, known(gathered).raw

        def run(call: int) -> None:
            parts = [self._peers(call, peer, raw) for peer in range(self.size - 1)]
            out.copy_(torch.cat([part.reshape(-1) for part in (*parts, raw)]).view(out.shape))

        self._start("all_gather", run, [tensor], [gathered]).wait()

    def start_all_reduce(self, tensor: torch.Tensor) -> Work:
        """As ``all_reduce``, and the current stream waits only when it is told to."""
        raw = known(tensor).raw

        def run(call: int) -> None:
            mine = raw.clone()
            for peer in range(self.size - 1):
                raw.add_(self._peers(call, peer, mine))

        return self._start("all_reduce", run, [], [tensor])

    def _start(
        self,
        label: str,
        run: Callable[[int], None],
        reads: list[torch.Tensor],
        writes: list[torch.Tensor],
    ) -> Work:
        call, self._calls = self._calls, self._calls + 1
        device, stream = self._device, self._device.stream
        device.hold(self._lane, device.record(stream))
        touches = touches_of(reads, writes=False) + touches_of(writes, writes=True)
        device.enqueue(self._lane, label, lambda: run(call), touches)
        return Work(device, device.record(self._lane))
