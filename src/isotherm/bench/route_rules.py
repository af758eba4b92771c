"""Ways of dispatch: what each rank makes of its tokens' experts, ours and those that engines use."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from isotherm.arrays import FloatArray, Int64Array
from isotherm.heat.totals import Totals, TotalsLayout
from isotherm.placement import Placement, Plan, rank_loads
from isotherm.router import Router, RoutingTables, near_split
from isotherm.streams import backend_for
from isotherm.topology import MoEShape, Topology

Rule = Callable[[int, int, int, Int64Array], Int64Array]
"""From rank, layer, step and the ids of the rank's tokens to their slots, both int64 [tokens, top_k]."""

_KNUTH = 2654435761
"""Multiplies a position into a hash (Knuth 1973)."""


def even_hash(placement: Placement) -> Rule:
    """A hash of the token's place in the batch picks the replica, all alike."""
    slots_LEX, count_LE = _replicas(placement)

    def rule(rank: int, layer: int, step: int, ids_TK: Int64Array) -> Int64Array:
        hash_T1 = (np.arange(len(ids_TK))[:, None] * _KNUTH & 0xFFFFFFFF) >> 16
        slots_TK: Int64Array = slots_LEX[layer, ids_TK, hash_T1 % count_LE[layer, ids_TK]]
        return slots_TK

    return rule


def nearest_replica(placement: Placement, topology: Topology) -> Rule:
    """Each rank has one replica of each expert: its own, else the first on its node, else one dealt out."""
    slots_LEX, count_LE = _replicas(placement)
    rank_LEX = slots_LEX // topology.slots_per_rank
    dealt_GLE = np.random.default_rng(0).integers(0, count_LE, (topology.ranks, *count_LE.shape))

    def rule(rank: int, layer: int, step: int, ids_TK: Int64Array) -> Int64Array:
        node = rank // topology.ranks_per_node
        far_EX = 2 - (rank_LEX[layer] // topology.ranks_per_node == node) - (rank_LEX[layer] == rank)
        far_EX = np.where(slots_LEX[layer] < 0, 3, far_EX)
        near_E = np.where(far_EX.min(axis=1) < 2, far_EX.argmin(axis=1), dealt_GLE[rank, layer])
        slots_TK: Int64Array = slots_LEX[layer, ids_TK, near_E[ids_TK]]
        return slots_TK

    return rule


def one_per_source(placement: Placement) -> Rule:
    """Rank ``g`` sends to replica ``g`` modulo their number."""
    slots_LEX, count_LE = _replicas(placement)
    return lambda rank, layer, step, ids_TK: slots_LEX[layer, ids_TK, rank % count_LE[layer, ids_TK]]


def by_shares(plan: Plan, topology: Topology) -> Rule:
    """Ours: each rank splits by the planned shares."""
    return _routed(plan, topology, lambda rank: plan.shares)


def near_first(plan: Plan, topology: Topology, source_NLE: FloatArray | None = None) -> Rule:
    """Ours: each rank has its own split, near replicas first, that adds up to the planned shares."""
    content_LP = plan.placement.slot_to_expert
    return _routed(
        plan, topology, lambda rank: near_split(content_LP, plan.shares, topology, rank, source_NLE)
    )


def levelled(plan: Plan, topology: Topology, heat_LE: FloatArray) -> Rule:
    """Ours: each rank levels each of its batches, where the others do so for ``heat_LE``."""
    load_LG = rank_loads(heat_LE, plan.placement, plan.shares, topology)
    others_LG = (topology.ranks - 1) * load_LG / load_LG.sum(axis=1, keepdims=True)
    return _routed(plan, topology, lambda rank: plan.shares, others_LG)


def _replicas(placement: Placement) -> tuple[Int64Array, Int64Array]:
    """The slots of each expert, ascending, [layers, experts, most replicas], padded with -1; and how many."""
    count_LE = placement.replicas_LE
    slots_LEX = np.full((*count_LE.shape, count_LE.max()), -1, np.int64)
    for layer, row_P in enumerate(placement.slot_to_expert):
        seen_E = np.zeros(placement.experts, np.int64)
        for slot, expert in enumerate(row_P):
            if expert >= 0:
                slots_LEX[layer, expert, seen_E[expert]] = slot
                seen_E[expert] += 1
    return slots_LEX, count_LE


def _routed(
    plan: Plan,
    topology: Topology,
    shares_of: Callable[[int], FloatArray],
    others_LG: FloatArray | None = None,
) -> Rule:
    """A real router for each rank."""
    layers, experts = plan.placement.layers, plan.placement.experts
    content_LP, backend = plan.placement.slot_to_expert, backend_for("cpu")
    totals = Totals(TotalsLayout(MoEShape(layers, experts, 1), topology.slots), 1, backend.device)
    routers = [
        Router(
            RoutingTables.build(content_LP, shares_of(rank), experts, others_LG),
            rank=rank,
            backend=backend,
            heat_MKLE=totals.heat_MKLE,
            received_MLP=totals.slots_MLP,
        )
        for rank in range(topology.ranks)
    ]

    def rule(rank: int, layer: int, step: int, ids_TK: Int64Array) -> Int64Array:
        slots_TK = routers[rank].route(
            layer, torch.from_numpy(ids_TK), step=step, num_tokens=len(ids_TK), num_decode=0
        )
        found_TK: Int64Array = slots_TK.numpy()
        return found_TK

    return rule
