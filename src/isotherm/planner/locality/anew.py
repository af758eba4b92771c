"""A layer from nothing whose experts are near to the tokens that pick them: nodes first, then ranks."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.planner.fresh.pack_kernels import pack, separate
from isotherm.planner.fresh.trade_kernels import trade
from isotherm.planner.locality.node_kernels import choose_homes
from isotherm.planner.locality.rank_kernels import trade_ranks
from isotherm.planner.locality.search_kernels import LEAST_GAIN, new_logs, search_near
from isotherm.planner.locality.split_kernels import TOLERANCE, send_near

ATTEMPTS = ((0.9, 0.95), (0.7, 0.75), (0.5, 0.55), (0.2, 0.35))
"""Tried in this order: what a node's ranks may carry above the mean, on average, as a part of what one of
them may, since ranks are harder to pack the less is left to them; and the most that an only slot carries, in
units of the mean load, since the others of its rank come to it."""


def place_layer_near(slot_expert_P: Int64Array, source_NE: FloatArray, ranks: int, peak: float) -> Int64Array:
    """Slots to experts, int64 [slots], with no rank above ``peak``, which ``slot_expert_P`` keeps to.

    Nodes are chosen for the experts by the pairs that stay near and by what nodes carry (`choose_homes`);
    then each node's experts are packed onto its ranks. Where no way that is tried keeps to the load, ranks of
    ``slot_expert_P`` trade nodes, and slots then trade places as if it were loaded.
    """
    if not source_NE.any():
        return slot_expert_P
    mean = float(source_NE.sum()) / ranks
    unit_NE, peak = source_NE / mean, peak / mean
    tokens_P, size = np.empty(len(slot_expert_P)), len(slot_expert_P) // ranks
    for room, full in ATTEMPTS:
        placed_P = pack_nodes(unit_NE, ranks, size, 1 + room * (peak - 1), full)
        if send_near(placed_P, unit_NE, ranks, peak, tokens_P)[0] <= peak * (1 + TOLERANCE):
            break
    else:
        placed_P = slot_expert_P.copy()
        trade_ranks(placed_P, unit_NE, ranks)
        search_near(placed_P, unit_NE, ranks, peak, LEAST_GAIN * ranks, *new_logs(len(placed_P)))
    near, before = (send_near(each, unit_NE, ranks, peak, tokens_P)[1] for each in (placed_P, slot_expert_P))
    return placed_P if near > before else slot_expert_P


def pack_nodes(source_NE: FloatArray, ranks: int, size: int, limit: float, full: float) -> Int64Array:
    """Slots to experts, int64 [slots]: heat in units of the mean load."""
    nodes = len(source_NE)
    slots_NE = choose_homes(source_NE, ranks, size, limit, full)
    away_E = np.where(slots_NE == 0, source_NE, 0.0).sum(axis=0) / slots_NE.sum(axis=0)
    weight_NE = np.where(slots_NE > 0, source_NE / np.maximum(slots_NE, 1) + away_E, 0.0)
    return np.concatenate(
        [pack_node(*node, ranks // nodes) for node in zip(weight_NE, slots_NE, strict=True)]
    )


def pack_node(weight_E: FloatArray, count_E: Int64Array, ranks: int) -> Int64Array:
    """Which slot of a node holds which of its experts, int64 [slots of the node]: heaviest first to the
    lightest rank, none twice on a rank, and then traded."""
    replica_P = np.repeat(np.arange(len(count_E)), count_E)
    expert_GS = replica_P[pack(weight_E[replica_P], ranks)]
    separate(expert_GS, weight_E)
    trade(expert_GS, weight_E, count_E.copy(), len(replica_P))
    return expert_GS.ravel()
