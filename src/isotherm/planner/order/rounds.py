"""A plan's moves as rounds of slots to retire and fill, and the imbalance that it costs to make them."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.placement import EMPTY, Placement, Plan, Rounds, rank_loads
from isotherm.planner.order.round_kernels import even_peaks, order_refills
from isotherm.planner.request import PlanRequest
from isotherm.planner.served.serving import settled_shares
from isotherm.window import overall_imbalance


def order_rounds(request: PlanRequest, goal: Placement) -> Rounds:
    """The rounds that lead from ``request.current`` to ``goal``, at most ``slots_per_round`` slots each.
    Layers that gain most of each move come first.

    Layers without a redundant slot have no rounds, nor has any where dispatch is replicated, since all ranks
    must then hold the same table: their moves need the engine's step word.
    """
    if request.current is None or request.dispatch == "replicated":
        return Rounds()
    if request.topology.slots == request.experts:
        return Rounds()
    held_LP, goal_LP = (each.slot_to_expert.astype(np.int64) for each in (request.current, goal))
    first_L = np.argsort(-_gain_per_move(request, held_LP, goal_LP), kind="stable")
    refills_N5 = order_refills(
        held_LP[first_L],
        goal_LP[first_L],
        request.heat_LE[first_L],
        request.topology.ranks_per_node,
        request.topology.slots_per_rank,
        request.slots_per_round,
    )
    refills_N5[:, 1] = first_L[refills_N5[:, 1]]
    return Rounds(refills_N5)


def _gain_per_move(request: PlanRequest, held_LP: Int64Array, goal_LP: Int64Array) -> FloatArray:
    """What a move takes off its layer's hottest rank, with even shares, which cost nothing; [layers]."""
    moves_L = (goal_LP != held_LP).sum(axis=1)
    before_L, after_L = (
        even_peaks(each_LP, request.heat_LE, request.topology.ranks) for each_LP in (held_LP, goal_LP)
    )
    gain_L: FloatArray = (before_L - after_L) / np.maximum(moves_L, 1)
    return gain_L


def transient_imbalance(request: PlanRequest, plan: Plan) -> FloatArray:
    """The overall imbalance while the slots of each round are retired, float64 [rounds].

    The others then receive the best shares there are for ``request.heat_LE``, or what the engine's rule
    gives them.

    Raises:
        ValueError: the request has no current placement, so nothing is on its way.
    """
    if request.current is None:
        raise ValueError("current=None: nothing moves, so nothing is retired meanwhile; give current=")
    content_LP, imbalances = request.current.slot_to_expert.copy(), []
    for refills in plan.rounds:
        layer, slot, expert, _ = np.array(refills).T
        content_LP[layer, slot] = EMPTY
        on_the_way = Placement(content_LP, request.experts)
        load_LG = rank_loads(
            request.heat_LE, on_the_way, settled_shares(request, on_the_way), request.topology
        )
        imbalances.append(overall_imbalance(load_LG))
        content_LP[layer, slot] = expert
    return np.array(imbalances)
