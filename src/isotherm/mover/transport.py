"""Carries weights between ranks through host memory and the heartbeat's link."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch

from isotherm.control import Link, Transfer
from isotherm.mover.ledger import Fill
from isotherm.mover.weights import ExpertWeights
from isotherm.status import Memory
from isotherm.streams import Backend
from isotherm.topology import Topology

_STAGED_EXPERTS = 4
"""Experts on their way through pinned memory at once, where weights lie on a device."""

_Copy: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""From, to."""


class HostTransport:
    """Fills dead slots over the CPU group's peers, bit for bit.

    Weights in CPU memory are sent from and received into their slots directly; those on a device pass
    through pinned memory for a few experts, made once, on a side stream of the transport's own.
    """

    def __init__(self, weights: ExpertWeights, topology: Topology, backend: Backend) -> None:
        self._weights = weights
        self._topology = topology
        self._backend = backend
        self._stream = backend.side_stream("move")
        is_staged = weights.views(0, 0)[0].device.type != "cpu"
        self._staging = [
            backend.pinned_empty((weights.bytes_per_expert,), torch.uint8)
            for _ in range(_STAGED_EXPERTS * is_staged)
        ]
        self.received_bytes = 0

    @staticmethod
    def memory(bytes_per_expert: int, *, device: torch.device | str) -> Memory:
        """The staging of one rank, where weights of this size lie on ``device``."""
        is_staged = torch.device(device).type != "cpu"
        return Memory(pinned_bytes=_STAGED_EXPERTS * bytes_per_expert * is_staged)

    def carry(self, fills: Sequence[Fill], link: Link) -> None:
        """Makes this rank's part of ``fills``; returns when its slots hold their new weights.

        Called on the carrier's thread, with the same fills on every rank of the link.
        """
        at_once = len(self._staging) or max(1, len(fills))
        for first in range(0, len(fills), at_once):
            self._carry(fills[first : first + at_once], link)

    def _carry(self, fills: Sequence[Fill], link: Link) -> None:
        """Carries as many fills as the staging holds."""
        sends: list[Transfer] = []
        receives: list[Transfer] = []
        leaving: list[_Copy] = []
        arriving: list[_Copy] = []
        for number, fill in enumerate(fills):
            source = self._topology.rank_of(fill.source)
            target = self._topology.rank_of(fill.target)
            if link.rank not in (source, target):
                continue
            if source == target:
                leaving += zip(self._views(fill, fill.source), self._views(fill, fill.target), strict=True)
            elif link.rank == source:
                views = self._views(fill, fill.source)
                buffers = self._host(views, number)
                leaving += ((v, b) for v, b in zip(views, buffers, strict=True) if v is not b)
                sends += _transfers(buffers, target, number)
            else:
                views = self._views(fill, fill.target)
                buffers = self._host(views, number)
                arriving += ((b, v) for v, b in zip(views, buffers, strict=True) if v is not b)
                receives += _transfers(buffers, source, number)
            self.received_bytes += self._weights.bytes_per_expert * (link.rank == target)
        try:
            self._copy(leaving)
        finally:
            # Whatever went wrong here, the others are in this call; a rank that fails says so afterwards.
            link.exchange(sends, receives)
        self._copy(arriving)

    def close(self) -> None:
        self._stream.close()

    def _host(self, views: Sequence[torch.Tensor], number: int) -> Sequence[torch.Tensor]:
        """Where the views' bytes are sent from or received into: themselves, or the staging of fill
        ``number``."""
        if not self._staging:
            return views
        return torch.split(self._staging[number], [view.numel() for view in views])

    def _copy(self, pairs: Sequence[_Copy]) -> None:
        """Copies on the transport's stream and waits for it, on the carrier's thread."""
        if not pairs:
            return

        def work() -> None:
            for source, target in pairs:
                target.copy_(source, non_blocking=True)

        self._stream.submit(work, reads=[s for s, _ in pairs], writes=[t for _, t in pairs])
        self._stream.record_event().synchronize()

    def _views(self, fill: Fill, slot: int) -> tuple[torch.Tensor, ...]:
        return self._weights.views(fill.layer, slot % self._topology.slots_per_rank)


def _transfers(buffers: Sequence[torch.Tensor], peer: int, number: int) -> list[Transfer]:
    """One for each tensor of the round's fill ``number``; an expert has fewer than 64 tensors."""
    return [Transfer(buffer, peer, number * 64 + tensor) for tensor, buffer in enumerate(buffers)]
