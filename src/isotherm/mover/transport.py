"""Carries weights between ranks through host memory and the heartbeat's link."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from isotherm.control import Link, Transfer
from isotherm.mover.ledger import Fill
from isotherm.mover.weights import ExpertWeights
from isotherm.streams import Backend
from isotherm.topology import Topology


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
        arriving: list[tuple[torch.Tensor, torch.Tensor]] = []
        for number, fill in enumerate(fills):
            source = self._topology.rank_of(fill.source)
            target = self._topology.rank_of(fill.target)
            if link.rank not in (source, target):
                continue
            if source == target:
                sources, targets = self._views(fill, fill.source), self._views(fill, fill.target)
                self._copy(list(zip(sources, targets, strict=True)))
            elif link.rank == source:
                sends += self._outgoing(fill, number, target)
            else:
                receives += self._incoming(fill, number, source, arriving)
            self.received_bytes += self._weights.bytes_per_expert * (link.rank == target)
        link.exchange(sends, receives)
        self._copy(arriving)

    def close(self) -> None:
        self._stream.close()

    def _outgoing(self, fill: Fill, number: int, peer: int) -> list[Transfer]:
        views = self._views(fill, fill.source)
        buffers = [self._host(view) for view in views]
        self._copy([(v, b) for v, b in zip(views, buffers, strict=True) if v is not b])
        return [Transfer(b, peer, _tag(number, i)) for i, b in enumerate(buffers)]

    def _incoming(
        self, fill: Fill, number: int, peer: int, arriving: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> list[Transfer]:
        views = self._views(fill, fill.target)
        buffers = [self._host(view) for view in views]
        arriving += [(b, v) for v, b in zip(views, buffers, strict=True) if v is not b]
        return [Transfer(b, peer, _tag(number, i)) for i, b in enumerate(buffers)]

    def _host(self, view: torch.Tensor) -> torch.Tensor:
        if view.device.type == "cpu":
            return view
        return self._backend.pinned_empty(view.shape, view.dtype)

    def _copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
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


def _tag(number: int, tensor: int) -> int:
    """Tells the tensors of a round's fills apart; an expert has fewer than 64 tensors."""
    return number * 64 + tensor
