"""The published balancer of DeepSeek: a placement from nothing, by two greedy steps."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.planner.fresh.pack_kernels import list_replicas, pack, separate
from isotherm.planner.request import PlanRequest
from isotherm.topology import Topology


def place_deepseek(request: PlanRequest) -> Int64Array:
    """Slots to experts, int64 [layers, slots], whatever the slots hold now.

    Global, with one group: each redundant slot goes to the expert with the most heat per replica, and
    replicas are packed onto ranks, heaviest first. Hierarchical, with ``groups`` that divide over the
    nodes: groups are packed onto nodes first, and both steps are then made within each node. Source: the
    description and example at https://github.com/deepseek-ai/EPLB. Where that puts an expert twice on a
    rank, the second replica trades places with one of another rank.

    Raises:
        ValueError: groups that do not divide over the nodes, or experts or slots that then do not.
    """
    topology, groups = request.topology, request.groups
    nodes = topology.nodes if groups > 1 else 1
    if groups % nodes:
        raise ValueError(
            f"groups={groups} do not divide over nodes={nodes}: plan without groups, or for a number of "
            "nodes that divides them"
        )
    node_slots = topology.slots // nodes
    if request.experts // nodes > node_slots:
        raise ValueError(
            f"{node_slots} slots a node hold fewer than {request.experts // nodes} experts of its groups"
        )
    return np.stack([_place_layer(heat_E, topology, groups, nodes) for heat_E in request.heat_LE])


def _place_layer(heat: FloatArray, topology: Topology, groups: int, nodes: int) -> Int64Array:
    heat_E = np.array(heat)
    group_size = len(heat_E) // groups
    ranks, size = topology.ranks // nodes, topology.slots_per_rank
    group_NX = pack(heat_E.reshape(groups, group_size).sum(axis=1), nodes)
    rows = []
    for group_X in group_NX:
        expert_M = (group_X[:, None] * group_size + np.arange(group_size)).ravel()
        heat_M = heat_E[expert_M]
        replica_P = list_replicas(heat_M, ranks * size, ranks)
        weight_M = heat_M / np.bincount(replica_P, minlength=len(heat_M))
        local_GS = replica_P[pack(weight_M[replica_P], ranks)]
        if size <= len(heat_M):
            separate(local_GS, weight_M)
        rows.append(expert_M[local_GS].ravel())
    return np.concatenate(rows)
