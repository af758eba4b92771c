"""Each rank's own split of every expert's tokens: near replicas first, and all ranks together as planned."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int32Array, Int64Array
from isotherm.router.tables import ONE
from isotherm.topology import Topology


def near_split(
    content_LP: Int32Array,
    shares_LP: FloatArray,
    topology: Topology,
    rank: int,
    source_NLE: FloatArray | Int64Array | None = None,
) -> FloatArray:
    """The shares that ``rank`` splits its own tokens by, float64 [layers, slots].

    A rank sends an expert's tokens to the replicas that it has itself, then to those on its node, then to
    others, each as far as the planned shares allow. Weighed by how many of the expert's tokens each rank has,
    the splits of all ranks add up to ``shares_LP``; of all that do, these let the fewest pairs cross nodes,
    and then ranks: to match what is nearest first is best where distances are those in a tree (Hoffman 1963).
    What a level cannot match in full is matched in proportion, so that no order of ranks or slots decides.

    Args:
        content_LP: the expert in each slot, -1 for none.
        shares_LP: the planned shares; those of the replicas of an expert add up to 1.
        source_NLE: heat by the node that owns the tokens, of which its ranks are taken to have equal parts;
            None: all ranks have equal parts. A node without heat of an expert splits it by ``shares_LP``.

    Every rank calls it with the same arrays, so each knows what the others do, and nothing is exchanged.
    """
    near_LP = np.array(shares_LP, np.float64)
    layer_I, slot_I = np.nonzero((near_LP > 0) & (near_LP < 1))
    if not len(layer_I):
        return near_LP
    # C: the (layer, expert) that are split, I: their replicas that have a share.
    expert_I, experts = content_LP[layer_I, slot_I].astype(np.int64), int(content_LP.max()) + 1
    cell_C, cell_I = np.unique(layer_I * experts + expert_I, return_inverse=True)
    supply_CN = _supplies(*np.divmod(cell_C, experts), topology.nodes, source_NLE)
    share_I, rank_I = near_LP[layer_I, slot_I], slot_I // topology.slots_per_rank
    own_I = _sent(rank, cell_I, rank_I, share_I, supply_CN, topology)
    near_LP[layer_I, slot_I] = _whole(own_I, cell_I, share_I)
    return near_LP


def _sent(
    rank: int,
    cell_I: Int64Array,
    rank_I: Int64Array,
    share_I: FloatArray,
    supply_CN: FloatArray,
    topology: Topology,
) -> FloatArray:
    """How much of all of the expert's tokens ``rank`` sends to each replica: matched within ranks, then what
    is left within nodes, then what is left of that."""
    ranks, nodes, per_node = topology.ranks, topology.nodes, topology.ranks_per_node
    node_I, node = rank_I // per_node, rank // per_node
    supply_CG = np.repeat(supply_CN / per_node, per_node, axis=1)
    wanted_CG = _sums(cell_I, rank_I, share_I, ranks)
    met_CG = np.minimum(supply_CG, wanted_CG)
    at_home_I = share_I * _ratio(met_CG, wanted_CG)[cell_I, rank_I]
    rest_I = share_I - at_home_I
    spare_CG = supply_CG - met_CG
    spare_CN = spare_CG.reshape(len(supply_CN), nodes, -1).sum(axis=2)
    wanted_CN = _sums(cell_I, node_I, rest_I, nodes)
    met_CN = np.minimum(spare_CN, wanted_CN)
    on_node_I = rest_I * _ratio(met_CN, wanted_CN)[cell_I, node_I]
    far_I = rest_I - on_node_I

    stays_C = spare_CG[:, rank] * _ratio(met_CN, spare_CN)[:, node]
    leaves_C = spare_CG[:, rank] - stays_C
    far_C1 = _sums(cell_I, np.zeros_like(cell_I), far_I, 1)
    own_I = np.where(rank_I == rank, at_home_I, 0.0)
    own_I += np.where(node_I == node, stays_C[cell_I] * _ratio(on_node_I, met_CN[cell_I, node]), 0.0)
    own_I += leaves_C[cell_I] * _ratio(far_I, far_C1[cell_I, 0])
    return own_I


def _supplies(
    layer_C: Int64Array, expert_C: Int64Array, nodes: int, source_NLE: FloatArray | Int64Array | None
) -> FloatArray:
    """The part of each expert's tokens that each node owns."""
    equal_CN = np.full((len(layer_C), nodes), 1.0 / nodes)
    if source_NLE is None:
        return equal_CN
    heat_CN = np.asarray(source_NLE, np.float64)[:, layer_C, expert_C].T
    total_C1 = heat_CN.sum(axis=1, keepdims=True)
    parts_CN: FloatArray = np.divide(heat_CN, total_C1, out=equal_CN, where=total_C1 > 0)
    return parts_CN


def _sums(cell_I: Int64Array, place_I: Int64Array, value_I: FloatArray, places: int) -> FloatArray:
    """Values added up by cell and place, float64 [cells, places]."""
    cells = int(cell_I.max()) + 1
    sums: FloatArray = np.bincount(cell_I * places + place_I, value_I, cells * places).astype(np.float64)
    return sums.reshape(cells, places)


def _ratio(met: FloatArray, of: FloatArray) -> FloatArray:
    """How much of each is met: 0 where there is nothing."""
    ratio: FloatArray = np.divide(met, of, out=np.zeros_like(of), where=of > 0)
    return ratio


def _whole(own_I: FloatArray, cell_I: Int64Array, share_I: FloatArray) -> FloatArray:
    """Parts of the rank's own tokens; what is less than the tables' least share is rounding."""
    total_I = _sums(cell_I, np.zeros_like(cell_I), own_I, 1)[cell_I, 0]
    part_I: FloatArray = np.divide(own_I, total_I, out=share_I.copy(), where=total_I > 0)
    part_I[part_I < 1 / ONE] = 0.0
    return part_I
