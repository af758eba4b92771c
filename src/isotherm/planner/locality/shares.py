"""Shares that keep pairs on the node that owns them, as far as balance allows."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.placement import Placement, rank_loads
from isotherm.planner.bounds import imbalance_bound
from isotherm.planner.layers.shares import balanced_shares
from isotherm.planner.locality.split_kernels import level_down, new_split
from isotherm.topology import Topology


def near_shares(
    source_heat_NLE: FloatArray | Int64Array, placement: Placement, topology: Topology, slack: float
) -> FloatArray:
    """Shares float64 [layers, slots] with which the fewest pairs cross nodes, where dispatch fills what a
    node gets of an expert with the node's own tokens first (`crossing_pairs` with ``prefers_near``).

    No rank carries more than `peaks_within` says. Exact up to rounding (see `split_kernels` for the method).
    Experts without heat are split evenly.

    Args:
        source_heat_NLE: heat by the node that owns the tokens, [nodes, layers, experts].
        slack: balancedness that may be given up, from 0 to below 1.
    """
    source_LNE = sources_by_layer(source_heat_NLE)
    peak_L = peaks_within(source_LNE.sum(axis=1), placement, topology, slack)
    shares_LP = placement.even_shares()
    divide_near(source_LNE, placement.slot_to_expert.astype(np.int64), topology.ranks, peak_L, shares_LP)
    return shares_LP


def sources_by_layer(source_heat_NLE: FloatArray | Int64Array) -> FloatArray:
    """As the kernels take it: float64 [layers, nodes, experts], contiguous."""
    return np.array(np.moveaxis(np.asarray(source_heat_NLE), 0, 1), np.float64, order="C")


def peaks_within(heat_LE: FloatArray, placement: Placement, topology: Topology, slack: float) -> FloatArray:
    """What a layer's hottest rank may carry, float64 [layers]: at a balancedness ``slack`` below the highest
    that any placement could have, or, where this one cannot reach that, at its own highest."""
    balance_L = np.maximum(1 / imbalance_bound(heat_LE, topology) - slack, 1 / topology.ranks)
    shares_LP = balanced_shares(heat_LE, placement, topology)
    lowest_L = rank_loads(heat_LE, placement, shares_LP, topology).max(axis=1)
    peak_L: FloatArray = np.maximum(heat_LE.sum(axis=1) / topology.ranks / balance_L, lowest_L)
    return peak_L


@kernel
def divide_near(
    source_LNE: FloatArray,
    slot_expert_LP: Int64Array,
    ranks: int,
    peak_L: FloatArray,
    shares_LP: FloatArray,
) -> None:
    """Replaces the shares of experts with heat."""
    for row in range(len(source_LNE)):
        mean = source_LNE[row].sum() / ranks
        if mean <= 0.0:
            continue
        split = new_split(slot_expert_LP[row], source_LNE[row] / mean, ranks)
        level_down(split, peak_L[row] / mean)
        for expert in range(source_LNE.shape[2]):
            total = split.got_NE[:, expert].sum()
            for i in range(split.begin_E1[expert], split.begin_E1[expert + 1]):
                if total > 0.0:
                    part = split.tokens_P[split.slot_P[i]] / total
                    shares_LP[row, split.slot_P[i]] = min(max(part, 0.0), 1.0)
