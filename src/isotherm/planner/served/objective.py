"""What a rank's load is: tokens, or expert weights read and tokens.

A rank's time in a layer is that of reading the weights of the experts that got a token, and of computing
the tokens. In prefill the tokens decide, and reads hide behind them. In decode the reads do: a replica with
one token costs nearly what a replica with ten costs, and an expert split over two replicas is read twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.placement import Placement, rank_loads
from isotherm.planner.layers.shares import balanced_shares
from isotherm.planner.locality.shares import near_shares
from isotherm.planner.served.dispatch import source_parts
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
class NearLoad(TokenLoad):
    """A token is a token, and better near to the node that owns it: within a slack of balancedness, the
    fewest pairs cross nodes (`near_shares`).

    Attributes:
        source_LEN: the part of each expert's tokens that each node owns, float64 [layers, experts, nodes].
        slack: balancedness that may be given up.
    """

    source_LEN: FloatArray
    slack: float

    @classmethod
    def of(cls, topology: Topology, source_heat_NLE: Int64Array, slack: float) -> NearLoad:
        """From heat by the node that owns the tokens."""
        shape_LE = source_heat_NLE.shape[1:]
        return cls(topology, source_parts(source_heat_NLE, shape_LE, topology.nodes), slack)

    def shares(self, heat_LE: FloatArray, placement: Placement) -> FloatArray:
        source_NLE = np.moveaxis(self.source_LEN * heat_LE[:, :, None], -1, 0)
        return near_shares(source_NLE, placement, self.topology, self.slack)


@dataclass(frozen=True, eq=False)
class ReadLoad:
    """Weights read, in experts, and tokens besides: where memory takes the time.

    An expert that is active in ``a`` steps with ``h`` decode tokens in all has ``h / a`` in each. Of these a
    replica with share ``s`` gets ``s h / a``, give or take less than one, since dispatch deals them out in
    order: it is active in ``min(a, s h)`` steps. So splitting an expert with one token per active step halves
    what each replica reads, and splitting one with many saves no read at all. Computing a token of any kind
    costs ``1 / tokens_per_read`` of a read, so that with many tokens, or prefill alone, this load becomes
    `TokenLoad`.

    Attributes:
        tokens_LE: decode tokens of an expert in a step in which it has any, float64 [layers, experts], at
            least 1.
        tokens_per_read: tokens that take as long to compute as an expert's weights to read.
        decode_LE: the part of an expert's heat that is of decode, float64 [layers, experts].
    """

    topology: Topology
    tokens_LE: FloatArray
    tokens_per_read: float
    decode_LE: FloatArray

    @classmethod
    def of(
        cls,
        topology: Topology,
        heat_KLE: FloatArray,
        active_LE: FloatArray,
        reads: list[int],
        weight_K: FloatArray,
        *,
        tokens_per_read: float,
    ) -> ReadLoad:
        """From heat by kind and the steps in which each expert was active. ``reads`` are the kinds whose
        reads count; in heat to come, kinds weigh ``weight_K``. Experts never seen have one token a step, and
        as much of decode as all together."""
        heat_LE = heat_KLE[reads].sum(axis=0)
        tokens_LE = np.divide(heat_LE, active_LE, out=np.ones_like(heat_LE), where=active_LE > 0)
        weighed_KLE = heat_KLE * weight_K[:, None, None]
        decode_LE, all_LE = weighed_KLE[reads].sum(axis=0), weighed_KLE.sum(axis=0)
        overall = decode_LE.sum() / all_LE.sum() if all_LE.any() else 1.0
        part_LE = np.divide(decode_LE, all_LE, out=np.full_like(heat_LE, overall), where=all_LE > 0)
        return cls(topology, np.maximum(tokens_LE, 1.0), tokens_per_read, part_LE)

    def alone(self) -> ReadLoad:
        """The load of decode without the other kinds."""
        return replace(self, decode_LE=np.ones_like(self.decode_LE))

    def units(self, placement: Placement, shares_LP: FloatArray) -> FloatArray:
        safe_LP = np.maximum(placement.slot_to_expert, 0).astype(np.int64)
        read_LP = 1.0 / np.take_along_axis(self.tokens_LE, safe_LP, axis=1)
        decode_LP = np.take_along_axis(self.decode_LE, safe_LP, axis=1)
        return decode_LP * np.minimum(read_LP, shares_LP) + shares_LP / self.tokens_per_read

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
        return heat_LE * (self.decode_LE / self.tokens_LE + 1.0 / self.tokens_per_read)
