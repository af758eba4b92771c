"""(token, expert) pairs that leave their node: how many, and how few there could be."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.placement import Placement
from isotherm.topology import Topology


def node_shares(placement: Placement, shares_LP: FloatArray, topology: Topology) -> FloatArray:
    """The part of each expert's tokens that each node's slots receive, float64 [nodes, layers, experts]."""
    per_node = topology.slots // topology.nodes
    out_NLE = np.zeros((topology.nodes, placement.layers, placement.experts))
    layer, slot = np.nonzero(placement.slot_to_expert >= 0)
    np.add.at(
        out_NLE, (slot // per_node, layer, placement.slot_to_expert[layer, slot]), shares_LP[layer, slot]
    )
    return out_NLE


def crossing_pairs(
    source_heat_NLE: FloatArray | Int64Array,
    placement: Placement,
    shares_LP: FloatArray,
    topology: Topology,
    *,
    prefers_near: bool,
) -> FloatArray:
    """Pairs that cross nodes, float64 [layers], in the unit of heat.

    Args:
        source_heat_NLE: heat by the node that owns the tokens.
        prefers_near: dispatch fills each node's part with its own tokens first, and sends across only what is
            left over; otherwise every node's tokens are split by the shares alike. Loads are the same.
    """
    source_NLE = np.asarray(source_heat_NLE, np.float64)
    part_NLE = node_shares(placement, shares_LP, topology)
    if prefers_near:
        near_NLE = np.minimum(source_NLE, part_NLE * source_NLE.sum(axis=0))
    else:
        near_NLE = part_NLE * source_NLE
    return np.asarray((source_NLE - near_NLE).sum(axis=(0, 2)))


def crossing_bound(source_heat_NLE: FloatArray | Int64Array, topology: Topology) -> FloatArray:
    """Float64 [layers]: no placement and dispatch let fewer pairs cross, whatever the balance.

    An expert with a replica on a node keeps at most that node's pairs near. Every expert has one, at best on
    the node with most of its pairs; each redundant slot adds at most one more (expert, node), the largest
    left. Taken without regard to how many slots a node has.
    """
    sorted_NLE = -np.sort(-np.asarray(source_heat_NLE, np.float64), axis=0)
    experts = sorted_NLE.shape[2]
    more_LX = -np.sort(-np.moveaxis(sorted_NLE[1:], 0, 1).reshape(sorted_NLE.shape[1], -1), axis=1)
    near_L = sorted_NLE[0].sum(axis=1) + more_LX[:, : topology.slots - experts].sum(axis=1)
    return np.asarray(sorted_NLE.sum(axis=(0, 2)) - near_L)
