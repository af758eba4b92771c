"""Carries weights between ranks through host memory and the heartbeat's link."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch

from isotherm.control import Link, Transfer
from isotherm.mover.ledger import Fill
from isotherm.mover.weights import ExpertWeights
from isotherm.streams import Backend
from isotherm.topology import Topology

_Copy: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""From, to."""


class HostTransport:
    """Fills dead slots over the CPU group's peers, bit for bit.

    Weights in CPU memory are sent from and received into their slots directly; those on a device pass
    through pinned memory, copied on a side stream of the transport's own.
    """

    def __init__(self, weights: ExpertWeights, topology: Topology, backend: Backend) -> None:
        self._weights = weights
        self._topology = topology
        self._backend = backend
        self._stream = backend.side_stream("move")
        self.received_bytes = 0

    def carry(self, fills: Sequence[Fill], link: Link) -> None:
        """Makes this rank's part of ``fills``; returns when its slots hold their new weights.

        Called on the heartbeat's thread, with the same fills on every rank of the link.
        """
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
                buffers = [self._host(view) for view in views]
                leaving += ((v, b) for v, b in zip(views, buffers, strict=True) if v is not b)
                sends += _transfers(buffers, target, number)
            else:
                views = self._views(fill, fill.target)
                buffers = [self._host(view) for view in views]
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

    def _host(self, view: torch.Tensor) -> torch.Tensor:
        if view.device.type == "cpu":
            return view
        return self._backend.pinned_empty(view.shape, view.dtype)

    def _copy(self, pairs: Sequence[_Copy]) -> None:
        """Copies on the transport's stream and waits for it, on the heartbeat's thread."""
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
