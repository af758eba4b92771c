"""Weights compared at both ends of their way, by checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from isotherm.control import Link, Transfer
from isotherm.errors import IsothermError
from isotherm.mover.carrier import Transport
from isotherm.mover.parts import copy_all
from isotherm.mover.schedule import Fill
from isotherm.mover.weights import Bits, ExpertWeights
from isotherm.streams import Backend
from isotherm.topology import Topology


class CheckedTransport:
    """Reads what another transport has carried once more at both ends, and compares.

    A second look at every byte, on the carrier's thread and a side stream of its own: for those who distrust
    their links or their transport, not for speed.
    """

    def __init__(
        self, inner: Transport, weights: ExpertWeights, topology: Topology, backend: Backend
    ) -> None:
        self._inner = inner
        self._weights = weights
        self._topology = topology
        self._stream = backend.side_stream("checksums")
        self._landing = backend.pinned_empty((weights.packed_bytes,), torch.uint8)
        self._backend = backend

    @property
    def received_bytes(self) -> int:
        """Of weights, without the checksums."""
        return self._inner.received_bytes

    def carry(self, fills: Sequence[Fill], link: Link) -> None:
        """Carries, and compares what arrived.

        Raises:
            IsothermError: it differs from what it was read from.
        """
        try:
            self._inner.carry(fills, link)
        finally:
            # Whatever went wrong here, the others are in this call.
            theirs = self._exchange(fills, link)
        for number, fill in enumerate(fills):
            if self._topology.rank_of(fill.target) == link.rank:
                arrived = self._checksum(fill.layer, self._weights.target(fill))
                if arrived.tolist() != theirs[number].tolist():
                    raise IsothermError(
                        f"layer {fill.layer}: what arrived in slot {fill.target} is not expert {fill.expert} "
                        f"of slot {fill.source}"
                    )

    def close(self) -> None:
        self._stream.close()
        self._inner.close()

    def _exchange(self, fills: Sequence[Fill], link: Link) -> dict[int, torch.Tensor]:
        """The checksums of the sources of what arrives here, by the number of the fill."""
        sends, receives, theirs = [], [], {}
        for number, fill in enumerate(fills):
            source, target = self._topology.rank_of(fill.source), self._topology.rank_of(fill.target)
            if link.rank == source:
                checksum = self._checksum(fill.layer, self._weights.source(fill))
                if source == target:
                    theirs[number] = checksum
                else:
                    sends.append(Transfer(checksum, target, number))
            elif link.rank == target:
                theirs[number] = torch.zeros(8, dtype=torch.uint8)
                receives.append(Transfer(theirs[number], source, number))
        link.exchange(sends, receives)
        return theirs

    def _checksum(self, layer: int, views: Bits) -> torch.Tensor:
        """uint8 [8], of all bits in the order of names and elements, whatever the strides."""
        places = self._weights.packed(layer, self._landing)
        pairs = list(zip(views, places, strict=True))
        self._stream.submit(lambda: copy_all(pairs), reads=list(views), writes=[self._landing])
        self._stream.record_event().synchronize()
        hashed = hashlib.blake2b(digest_size=8)

        def work() -> None:
            for place in places:
                hashed.update(place.numpy().data)

        self._backend.caller_stream().submit(work, reads=[self._landing])
        return torch.tensor(list(hashed.digest()), dtype=torch.uint8)
