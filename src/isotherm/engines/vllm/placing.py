"""A plan as vLLM's own balancer asks for it: arrays in, experts of slots out. Needs no vLLM and no torch."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.placement import EMPTY, Placement, Plan
from isotherm.planner import PlanRequest, make_plan
from isotherm.planner.order.align import keep_places
from isotherm.topology import Topology

MAX_IMBALANCE = 1.03
"""No layer at or below this is changed."""

GAIN = 0.05
"""A layer that the search leaves above the limit is placed anew where that takes at least this part off its
hottest rank. vLLM's first placement, all redundant slots on the last ranks, leads to such dead ends."""


def place_experts(
    load_LE: np.ndarray,
    topology: Topology,
    held_LP: Int64Array | None = None,
    *,
    max_imbalance: float = MAX_IMBALANCE,
) -> Int64Array:
    """Which expert each slot is to hold, int64 [layers, slots], none of them empty.

    vLLM splits an expert's tokens evenly over its replicas. Layers whose hottest rank then carries more than
    ``max_imbalance`` times the mean are changed, as little as brings them there, or placed anew where no
    small change does (`GAIN`). A pure function whose answer
    is the same on every CPU: each rank of vLLM plans for itself.

    Args:
        load_LE: tokens of each expert, [layers, experts]. Loads that are all equal (no traffic yet, or a
            profiling run) say nothing, and nothing moves.
        held_LP: what the slots hold now, [layers, slots], -1 for a slot without weights. Where it has another
            number of slots (ranks left or came), or an expert has none, the plan is made from nothing, and
            what stays on its rank stays in its slot.

    Raises:
        ValueError: loads that are negative, not finite or of another shape, or fewer slots than experts.
    """
    load_LE = np.array(load_LE, np.float64)
    held_LP = _fitted(held_LP, len(load_LE), topology)
    current = None if held_LP is None else _complete(held_LP, load_LE, topology)
    if current is not None and (load_LE == load_LE.flat[0]).all():
        return current.slot_to_expert.astype(np.int64)
    plan = _plan(load_LE, topology, current, max_imbalance)
    goal_LP = plan.placement.slot_to_expert.astype(np.int64)
    if current is None:
        if held_LP is not None:
            keep_places(held_LP, goal_LP, topology.ranks)
        return goal_LP
    stuck = np.flatnonzero(plan.imbalance > max_imbalance)
    if len(stuck):
        anew = _plan(load_LE[stuck], topology, None, 1.0)
        better = anew.imbalance < (1 - GAIN) * plan.imbalance[stuck]
        layers, anew_LP = stuck[better], anew.placement.slot_to_expert[better].astype(np.int64)
        keep_places(current.slot_to_expert[layers].astype(np.int64), anew_LP, topology.ranks)
        goal_LP[layers] = anew_LP
    return goal_LP


def _plan(load_LE: FloatArray, topology: Topology, current: Placement | None, max_imbalance: float) -> Plan:
    request = PlanRequest(
        heat_LE=load_LE,
        topology=topology,
        current=current,
        max_imbalance=1.0 if current is None else max_imbalance,
        shares="even",
        engine="vllm",
    )
    return make_plan(request)


def _fitted(held_LP: Int64Array | None, layers: int, topology: Topology) -> Int64Array | None:
    """What the slots hold, cut or filled up with empty ones to as many as there are to be."""
    if held_LP is None or held_LP.shape[0] != layers:
        return None
    fitted_LP = np.full((layers, topology.slots), EMPTY, np.int64)
    both = min(topology.slots, held_LP.shape[1])
    fitted_LP[:, :both] = held_LP[:, :both]
    return fitted_LP


def _complete(held_LP: Int64Array, load_LE: FloatArray, topology: Topology) -> Placement | None:
    """What the slots hold, with the empty ones given to the experts that carry most per replica; None where
    an expert has no slot at all."""
    full_LP = held_LP.copy()
    for layer in np.flatnonzero((held_LP == EMPTY).any(axis=1)):
        _fill(full_LP[layer], load_LE[layer], topology)
    try:
        return Placement(full_LP.astype(np.int32), load_LE.shape[1])
    except ValueError:  # an expert that no slot holds
        return None


def _fill(held_P: Int64Array, load_E: FloatArray, topology: Topology) -> None:
    """Gives each empty slot of a layer, in order, the expert with most load per replica of those that its
    rank does not hold yet; equal ones by their number. In place."""
    count_E = np.bincount(held_P[held_P != EMPTY], minlength=len(load_E)).astype(np.float64)
    load_E = load_E if load_E.any() else np.ones_like(load_E)
    held_GS = held_P.reshape(topology.ranks, topology.slots_per_rank)
    for rank, slot in np.argwhere(held_GS == EMPTY):
        wanted_E = load_E / np.maximum(count_E, 0.5)
        on_rank_S = held_GS[rank][held_GS[rank] != EMPTY]
        if len(on_rank_S) < len(load_E):
            wanted_E[on_rank_S] = -1.0
        expert = int(wanted_E.argmax())
        held_GS[rank, slot] = expert
        count_E[expert] += 1


def warm_up() -> None:
    """Compiles what `place_experts` calls, or loads it from numba's cache: plans from nothing, from what is
    loaded, and from what is loaded in part."""
    topology = Topology(ranks=2, slots_per_rank=3)
    load_LE = np.array([[9, 3, 2, 1]])
    place_experts(load_LE, topology)
    place_experts(load_LE, topology, np.array([[0, 1, 2, 3, 0, 1]]), max_imbalance=1.0)
    place_experts(load_LE, topology, np.array([[0, 1, 2, 3, EMPTY, EMPTY]]), max_imbalance=1.0)
    place_experts(load_LE, topology, np.array([[0, 1, 2, EMPTY, EMPTY, EMPTY]]))
    keep_places(np.zeros((1, 6), np.int64), np.zeros((1, 6), np.int64), 2)
