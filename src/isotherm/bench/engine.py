"""A synthetic engine: what the steps of a model look like to whoever collects their heat."""

from __future__ import annotations

import torch

from isotherm.bench.ranks import RANKS
from isotherm.bench.traffic import SHAPE, Traffic
from isotherm.topology import Topology

EP2 = Topology(ranks=RANKS, slots_per_rank=(SHAPE.experts + 32) // RANKS)
"""As many slots in a layer as EP32 with 32 redundant slots: tables and totals have the same shape."""

TOKENS = 128

_WIDTH = 704
_QUICK_WIDTH = 64
_BATCHES = 4 * SHAPE.layers


class SyntheticEngine:
    """58 layers, each a matrix product of fixed size, with the ids that its tokens chose and the counts that
    its slots received made beforehand. Nothing is allocated in a step.

    A layer takes 0.7 ms or so on one core, and a step 40 ms: as long as DeepSeek-V3 takes to decode (47 ms
    per token are published), so that a part of a step means here what it means there.
    ``quick``: a layer takes next to no time, and a part of a step means nothing.
    """

    def __init__(self, rank: int, *, quick: bool = False) -> None:
        width = _QUICK_WIDTH if quick else _WIDTH
        generator = torch.Generator().manual_seed(rank)
        self._input = torch.randn((TOKENS, width), generator=generator)
        self._weight = torch.randn((width, width), generator=generator)
        self._output = torch.empty((TOKENS, width))
        self.ids = Traffic(seed=rank).batches(TOKENS, _BATCHES)
        slots = EP2.slots_per_rank
        received = torch.randint(0, 2 * TOKENS, (_BATCHES, slots), generator=generator, dtype=torch.int32)
        self.received = list(received.unbind())
        self._begun = 0

    def begin_step(self) -> int:
        """Begins a step; the index of its first batch."""
        self._begun += 1
        return self._begun * SHAPE.layers % (_BATCHES - SHAPE.layers + 1)

    def work(self) -> None:
        """What a layer does beside routing."""
        torch.mm(self._input, self._weight, out=self._output)
