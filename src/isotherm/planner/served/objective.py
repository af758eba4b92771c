"""What a rank's load is: tokens, or expert weights read and tokens.

A rank's time in a layer is that of reading the weights of the experts that got a token, and of computing
the tokens. In prefill the tokens decide. In decode the reads do: a replica with one token costs nearly what a
replica with ten costs, and an expert split over two replicas is read twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.placement import Placement, rank_loads
from isotherm.planner.layers.shares import balanced_shares
from isotherm.planner.served.read_kernels import choose_replicas
from isotherm.topology import Topology


class Objective(Protocol):
    """What to keep level over the ranks: a load that grows with heat, slot by slot."""

    def units(self, placement: Placement, shares_LP: FloatArray) -> FloatArray:
        """What a token of its expert adds to the load of each slot, float64 [layers, slots]."""

    def shares(self, heat_LE: FloatArray, placement: Placement) -> FloatArray:
        """The shares that level the loads, float64 [layers, slots]."""

    def weights(self, heat_LE: FloatArray) -> FloatArray:
        """What each expert adds to the load of an only replica, float64 [layers, experts]: the heat for a
        search that knows of tokens alone."""


@dataclass(frozen=True)
class TokenLoad:
    """A token is a token: where computing takes the time."""

    topology: Topology

    def units(self, placement: Placement, shares_LP: FloatArray) -> FloatArray:
        return shares_LP

    def shares(self, heat_LE: FloatArray, placement: Placement) -> FloatArray:
        return balanced_shares(heat_LE, placement, self.topology)

    def weights(self, heat_LE: FloatArray) -> FloatArray:
        return heat_LE


@dataclass(frozen=True, eq=False)
class ReadLoad:
    """Weights read, in experts, and tokens besides: where memory takes the time.

    An expert that is active in ``a`` steps with ``h`` tokens in all has ``h / a`` in each. Of these a replica
    with share ``s`` gets ``s h / a``, give or take less than one, since dispatch deals them out in order: it
    is active in ``min(a, s h)`` steps. So splitting an expert with one token per active step halves what each
    replica reads, and splitting one with many saves no read at all. Computing a token costs
    ``1 / tokens_per_read`` of a read, so that with many tokens this load becomes `TokenLoad`.

    Attributes:
        tokens_LE: tokens of an expert in a step in which it has any, float64 [layers, experts], at least 1.
        tokens_per_read: tokens that take as long to compute as an expert's weights to read.
    """

    topology: Topology
    tokens_LE: FloatArray
    tokens_per_read: float

    @classmethod
    def of(
        cls, topology: Topology, heat_LE: FloatArray, active_LE: FloatArray, tokens_per_read: float
    ) -> ReadLoad:
        """From heat and the steps in which each expert was active; experts never seen have one token."""
        one_LE = np.ones_like(heat_LE)
        tokens_LE = np.divide(heat_LE, active_LE, out=one_LE, where=active_LE > 0)
        return cls(topology, np.maximum(tokens_LE, 1.0), tokens_per_read)

    def units(self, placement: Placement, shares_LP: FloatArray) -> FloatArray:
        safe_LP = np.maximum(placement.slot_to_expert, 0).astype(np.int64)
        read_LP = 1.0 / np.take_along_axis(self.tokens_LE, safe_LP, axis=1)
        return np.minimum(read_LP, shares_LP) + shares_LP / self.tokens_per_read

    def shares(self, heat_LE: FloatArray, placement: Placement) -> FloatArray:
        """Layer by layer the better of two: tokens balanced, or each expert on one of its replicas alone. The
        load is concave in the shares, so that what lies between is no better by itself."""
        split_LP = balanced_shares(heat_LE, placement, self.topology)
        whole_LP = np.empty_like(split_LP)
        slot_expert_LP = placement.slot_to_expert.astype(np.int64)
        choose_replicas(self.weights(heat_LE), slot_expert_LP, self.topology.ranks, whole_LP)
        peaks = [
            rank_loads(heat_LE, placement, self.units(placement, shares_LP), self.topology).max(axis=1)
            for shares_LP in (split_LP, whole_LP)
        ]
        return np.where((peaks[1] < peaks[0])[:, None], whole_LP, split_LP)

    def weights(self, heat_LE: FloatArray) -> FloatArray:
        return heat_LE * (1.0 / self.tokens_LE + 1.0 / self.tokens_per_read)
