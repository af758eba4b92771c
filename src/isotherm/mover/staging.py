"""Weights that lie beside their slots until all ranks take them up in the same step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from isotherm.mover.ledger import Ledger
from isotherm.mover.parts import Copy, copy_all
from isotherm.mover.weights import ExpertWeights
from isotherm.status import Memory
from isotherm.streams import Backend, Handoff
from isotherm.topology import Topology


class Staging:
    """Buffers on the device of the weights, made once, and their copies into slots.

    ``leave`` is the heartbeat's, ``take_up`` the engine's thread's. A buffer is written again when every rank
    has finished a step with the tables that came with it: then the copies out of it are done too.
    """

    def __init__(
        self, weights: ExpertWeights, topology: Topology, rank: int, backend: Backend, *, buffers: int
    ) -> None:
        self._weights = weights
        self._topology = topology
        self._rank = rank
        self._backend = backend
        self._left: Handoff[Ledger] = backend.handoff()
        weights.lend_buffers(weights.make_buffers(buffers, backend))

    @staticmethod
    def memory(bytes_per_expert: int, *, buffers: int) -> Memory:
        """The buffers of one rank, but for what tensors are aligned to."""
        return Memory(device_bytes=buffers * bytes_per_expert)

    def leave(self, ledger: Ledger) -> None:
        """The batch of ``ledger`` lies in the buffers, and is to be taken up with its tables."""
        self._left.put(ledger)

    def take_up(self) -> None:
        """Copies what was left into its slots, behind all that the engine's stream was given and before what
        it is given next. Never waits."""
        while (ledger := self._left.try_take()) is not None:
            pairs = [
                pair
                for fill in ledger.batch
                if self._topology.rank_of(fill.target) == self._rank
                for pair in zip(
                    self._weights.target(fill),
                    self._weights.views(fill.layer, fill.target % self._topology.slots_per_rank),
                    strict=True,
                )
            ]
            self._copy(pairs)

    def _copy(self, pairs: Sequence[Copy]) -> None:
        def work() -> None:
            with torch.inference_mode():  # whatever the engine's thread is in, and the slots were made in
                copy_all(pairs)

        if pairs:
            reads, writes = [buffer for buffer, _ in pairs], [slot for _, slot in pairs]
            self._backend.main_stream().submit(work, reads=reads, writes=writes)
