"""Carries weights from device to device, for engines that order device collectives themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from isotherm.control import Link, Transfer
from isotherm.mover.parts import Parts, copy_all, parts_of
from isotherm.mover.schedule import Fill
from isotherm.mover.weights import Bits, ExpertWeights
from isotherm.streams import Backend
from isotherm.topology import Topology

_AT_ONCE = 4
"""Experts that are on their way at once."""


class DevicePeers(Protocol):
    """Transfers of memory of the device, enqueued on the stream that is current."""

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        """Enqueues all of them as one batch. Between two ranks they are in the same order on both."""


class TorchDevicePeers:
    """A torch.distributed group whose transfers the engine orders with its own collectives.

    The engine says so by giving the group: unordered communicators on one device deadlock. Building it is a
    collective of the group, which makes its communicator.
    """

    def __init__(self, group: dist.ProcessGroup, device: torch.device | str) -> None:
        self._group = group
        dist.all_reduce(torch.zeros(1, device=device), group=group)

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        operations = [self._operation(dist.isend, transfer) for transfer in sends]
        operations += [self._operation(dist.irecv, transfer) for transfer in receives]
        for request in dist.batch_isend_irecv(operations):
            request.wait()  # where the group belongs to a device, its current stream waits, not the host

    def _operation(self, call: Callable[..., object], transfer: Transfer) -> dist.P2POp:
        return dist.P2POp(
            call, transfer.buffer, group=self._group, group_peer=transfer.peer, tag=transfer.tag
        )


class DeviceTransport:
    """Carries weights by batches of sends and receives on a side stream of the device, bit for bit.

    Only where the engine declares that it orders the transfers of ``peers`` with its own collectives::

        transport = functools.partial(DeviceTransport, peers=TorchDevicePeers(group, device))
        Balancer(..., transport=transport)

    Contiguous weights are sent from and received into their slots; those with strides pass through buffers on
    the device, made once. A peer that is silent is the group's affair: its watchdog may end the process.
    """

    def __init__(
        self, weights: ExpertWeights, topology: Topology, backend: Backend, *, peers: DevicePeers
    ) -> None:
        self._weights = weights
        self._topology = topology
        self._peers = peers
        self._stream = backend.side_stream("move")
        self._packed = [] if weights.lie_contiguous else weights.make_buffers(_AT_ONCE, backend)
        self.received_bytes = 0

    def carry(self, fills: Sequence[Fill], link: Link) -> None:
        """Makes this rank's part of ``fills``; returns when its slots hold their new weights.

        Called on the carrier's thread, with the same fills on every rank of the link.
        """
        for first in range(0, len(fills), _AT_ONCE):
            some = fills[first : first + _AT_ONCE]
            parts = parts_of(some, link.rank, self._weights, self._topology, self._places)
            self._enqueue(parts)
            self.received_bytes += self._weights.bytes_per_expert * parts.experts

    def close(self) -> None:
        self._stream.close()

    def _enqueue(self, parts: Parts) -> None:
        """All of it in the order of one stream; waits for that, on the carrier's thread."""

        def work() -> None:
            copy_all(parts.leaving)
            if parts.sends or parts.receives:
                self._peers.exchange(parts.sends, parts.receives)
            copy_all(parts.arriving)

        copies = [*parts.leaving, *parts.arriving]
        reads = [source for source, _ in copies] + [transfer.buffer for transfer in parts.sends]
        writes = [target for _, target in copies] + [transfer.buffer for transfer in parts.receives]
        self._stream.submit(work, reads=reads, writes=writes)
        self._stream.record_event().synchronize()

    def _places(self, layer: int, views: Bits, number: int) -> Bits:
        if not self._packed:
            return views
        packed = self._weights.packed(layer, self._packed[number])
        return tuple(v if v.is_contiguous() else place for v, place in zip(views, packed, strict=True))
