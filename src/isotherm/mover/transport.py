"""Carries weights between ranks through host memory and the heartbeat's link."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from isotherm.control import Link
from isotherm.errors import LinkError
from isotherm.mover.parts import Copy, copy_all, parts_of
from isotherm.mover.schedule import Fill
from isotherm.mover.weights import Bits, ExpertWeights, can_send
from isotherm.status import Memory
from isotherm.streams import Backend
from isotherm.topology import Topology

_STAGED_EXPERTS = 4
"""Experts on their way through pinned memory at once, where weights cannot be sent as they lie."""


class HostTransport:
    """Carries weights over the CPU group's peers, bit for bit.

    Weights that lie one behind the other in CPU memory are sent from and received into their slots directly;
    those on a device, or with strides, pass through pinned memory for a few experts, made once, on a side
    stream of the transport's own.
    """

    def __init__(self, weights: ExpertWeights, topology: Topology, backend: Backend) -> None:
        self._weights = weights
        self._topology = topology
        self._stream = backend.side_stream("move")
        self._staging = [
            backend.pinned_empty((weights.packed_bytes,), torch.uint8)
            for _ in range(_STAGED_EXPERTS * (not weights.lie_sendable))
        ]
        self.received_bytes = 0

    @staticmethod
    def memory(bytes_per_expert: int, *, device: torch.device | str) -> Memory:
        """The staging of one rank, where weights of this size lie on ``device`` without strides."""
        is_staged = torch.device(device).type != "cpu"
        return Memory(pinned_bytes=_STAGED_EXPERTS * bytes_per_expert * is_staged)

    def carry(self, fills: Sequence[Fill], link: Link) -> None:
        """Makes this rank's part of ``fills``; returns when its slots hold their new weights.

        Called on the carrier's thread, with the same fills on every rank of the link.
        """
        failed: Exception | None = None
        for first in range(0, len(fills), _STAGED_EXPERTS):
            try:
                self._carry(fills[first : first + _STAGED_EXPERTS], link)
            except LinkError:
                raise
            except Exception as error:
                failed = failed or error  # the others wait for this rank's part of those that follow
        if failed is not None:
            raise failed

    def _carry(self, fills: Sequence[Fill], link: Link) -> None:
        """Carries as many fills as the staging holds."""
        parts = parts_of(fills, link.rank, self._weights, self._topology, self._places)
        try:
            self._copy(parts.leaving)
        finally:
            # Whatever went wrong here, the others are in this call; a rank that fails says so afterwards.
            link.exchange(parts.sends, parts.receives)
        self._copy(parts.arriving)
        self.received_bytes += self._weights.bytes_per_expert * parts.experts

    def close(self) -> None:
        self._stream.close()

    def _places(self, layer: int, views: Bits, number: int) -> Bits:
        if not self._staging:
            return views
        packed = self._weights.packed(layer, self._staging[number])
        return tuple(view if can_send(view) else place for view, place in zip(views, packed, strict=True))

    def _copy(self, pairs: Sequence[Copy]) -> None:
        """Copies on the transport's stream and waits for it, on the carrier's thread."""
        if pairs:
            reads, writes = [source for source, _ in pairs], [target for _, target in pairs]
            self._stream.submit(lambda: copy_all(pairs), reads=reads, writes=writes)
            self._stream.record_event().synchronize()
