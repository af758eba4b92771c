"""Shares that keep pairs on the node that owns them, as far as balance allows."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.placement import Placement, rank_loads
from isotherm.planner.bounds import imbalance_bound
from isotherm.planner.layers.shares import balanced_shares
from isotherm.planner.locality.split_kernels import send_near
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
    shares_LP, slot_expert_LP = placement.even_shares(), placement.slot_to_expert.astype(np.int64)
    tokens_P, ranks = np.empty(topology.slots), topology.ranks
    for row, source_NE in enumerate(source_LNE):
        mean = float(source_NE.sum()) / ranks
        if mean > 0:
            send_near(slot_expert_LP[row], source_NE / mean, ranks, float(peak_L[row]) / mean, tokens_P)
            _divide(slot_expert_LP[row], tokens_P, shares_LP[row])
    return shares_LP


def _divide(slot_expert_P: Int64Array, tokens_P: FloatArray, shares_P: FloatArray) -> None:
    """Replaces the shares of experts with tokens."""
    held_P = slot_expert_P >= 0
    total_E = np.bincount(slot_expert_P[held_P], np.maximum(tokens_P[held_P], 0.0))
    total_P = np.where(held_P, total_E[slot_expert_P], 0.0)
    np.divide(np.maximum(tokens_P, 0.0), total_P, out=shares_P, where=total_P > 0)


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
