"""A layer from nothing whose experts are near to the tokens that pick them: nodes first, then ranks."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.planner.fresh.pack_kernels import pack, separate
from isotherm.planner.fresh.trade_kernels import trade
from isotherm.planner.locality.node_kernels import choose_homes
from isotherm.planner.locality.shares import sent_near
from isotherm.planner.locality.split_kernels import TOLERANCE

ATTEMPTS = ((0.9, 0.95), (0.7, 0.75), (0.5, 0.55), (0.2, 0.35))
"""Tried in this order: what a node's ranks may carry above the mean, on average, as a part of what one of
them may, since ranks are harder to pack the less is left to them; and the most that an only slot carries, in
units of the mean load, since the others of its rank come to it."""


def place_layer_near(slot_expert_P: Int64Array, source_NE: FloatArray, ranks: int, peak: float) -> Int64Array:
    """Slots to experts, int64 [slots], with no rank above ``peak``: placed anew where that keeps more pairs
    near than ``slot_expert_P`` does, else as there.

    Nodes are chosen for the experts by the pairs that stay near and by what nodes carry (`choose_homes`);
    then each node's experts are packed onto its ranks.
    """
    if not source_NE.any():
        return slot_expert_P
    mean = float(source_NE.sum()) / ranks
    for room, full in ATTEMPTS:
        limit = 1 + room * (peak / mean - 1)
        placed_P = pack_nodes(source_NE / mean, ranks, len(slot_expert_P) // ranks, limit, full)
        found, near = sent_near(placed_P, source_NE, ranks, peak)
        if found <= peak * (1 + TOLERANCE):
            return placed_P if near > sent_near(slot_expert_P, source_NE, ranks, peak)[1] else slot_expert_P
    return slot_expert_P


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
