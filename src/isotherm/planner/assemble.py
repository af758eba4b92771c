"""A policy's answer made into a plan: checked, within budget, with shares, prediction and reason."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import BoolArray
from isotherm.errors import PlanRefusedError
from isotherm.placement import EMPTY, Move, Placement, Plan, rank_loads
from isotherm.planner.bounds import imbalance_bound
from isotherm.planner.order.align import keep_places
from isotherm.planner.order.rounds import order_rounds
from isotherm.planner.policy.baselines import start_of
from isotherm.planner.policy.registry import get_policy
from isotherm.planner.request import PlanRequest
from isotherm.planner.served.dispatch import rule_of
from isotherm.planner.served.serving import settled_shares
from isotherm.window import layer_imbalance, overall_imbalance


def make_plan(
    request: PlanRequest, *, policy: str = "incremental", layer_ids: tuple[int, ...] | None = None
) -> Plan:
    """The plan of ``policy`` for ``request``. A pure function.

    Without any heat nothing changes. ``layer_ids`` are the model's own layer numbers; None: 0, 1, ...

    Raises:
        PlanRefusedError: the policy's answer drops an expert, puts one twice on a rank, or has another
            shape; the message names policy, layer and rule.
        ValueError: the policy is unknown, or cannot do what the request asks.
    """
    answer = get_policy(policy)
    start = start_of(request)
    placement = start
    if request.heat_LE.any():
        placement = _checked(answer(request), request, policy)
        if request.current is not None and request.max_moves is not None:
            placement = _within(request, request.current, placement, request.max_moves)
    shares_LP = settled_shares(request, placement)
    load_LG = rank_loads(request.heat_LE, placement, shares_LP, request.topology)
    moves = () if request.current is None else _moves(request.current, placement)
    return Plan(
        placement=placement,
        shares=shares_LP,
        moves=moves,
        imbalance=layer_imbalance(load_LG),
        bound=imbalance_bound(request.heat_LE, request.topology),
        reason=_reason(request, start, overall_imbalance(load_LG), len(moves)),
        layer_ids=tuple(range(request.layers)) if layer_ids is None else layer_ids,
        rounds=order_rounds(request, placement),
    )


def _checked(answer: np.ndarray, request: PlanRequest, policy: str) -> Placement:
    slot_to_expert_LP = np.asarray(answer)
    wanted = (request.layers, request.topology.slots)
    if slot_to_expert_LP.shape != wanted or slot_to_expert_LP.dtype.kind not in "iu":
        raise PlanRefusedError(
            f"policy {policy!r} answered with {slot_to_expert_LP.dtype} {slot_to_expert_LP.shape}; "
            f"integers {wanted} [layers, slots] were asked for"
        )
    if request.current is not None:
        goal_LP = np.array(slot_to_expert_LP, np.int64)
        keep_places(request.current.slot_to_expert.astype(np.int64), goal_LP, request.topology.ranks)
        slot_to_expert_LP = goal_LP
    try:
        placement = Placement(slot_to_expert_LP, request.experts)
    except ValueError as error:
        raise PlanRefusedError(f"policy {policy!r}: {error}") from error
    rule = rule_of(request.engine)
    nodes = request.topology.nodes if request.groups > 1 else 1
    if request.topology.slots_per_rank <= request.experts // nodes or not rule.repeats:
        _check_apart(placement, request, policy)
    empty = np.argwhere(placement.slot_to_expert == EMPTY)
    if len(empty) and not rule.empties:
        layer, slot = empty[0]
        raise PlanRefusedError(
            f"policy {policy!r}, layer {layer}: slot {slot} is empty, and engine={request.engine!r} knows no "
            "empty slots"
        )
    return placement


def _check_apart(placement: Placement, request: PlanRequest, policy: str) -> None:
    """No expert twice on a rank, except where it is so already and the engine can hold it."""
    if not has_twice(placement, request.topology.ranks):
        return
    wasted_LP = twice_on_rank(placement, request.topology.ranks)
    if request.current is not None and rule_of(request.engine).repeats:
        wasted_LP &= ~twice_on_rank(request.current, request.topology.ranks)
    for layer, slot in np.argwhere(wasted_LP):
        expert = placement.slot_to_expert[layer, slot]
        raise PlanRefusedError(
            f"policy {policy!r}, layer {layer}: expert {expert} is twice on rank "
            f"{request.topology.rank_of(int(slot))}, where the second replica is wasted"
        )


def has_twice(placement: Placement, ranks: int) -> bool:
    """Whether a rank holds an expert twice in any layer."""
    expert_LGS = np.sort(placement.slot_to_expert.reshape(placement.layers, ranks, -1))
    again = (expert_LGS[..., 1:] == expert_LGS[..., :-1]) & (expert_LGS[..., 1:] != EMPTY)
    return bool(again.any())


def twice_on_rank(placement: Placement, ranks: int) -> BoolArray:
    """Bool [layers, slots]: the slot's expert has another slot on the same rank."""
    expert_LGS = placement.slot_to_expert.reshape(placement.layers, ranks, -1)
    same = expert_LGS[..., :, None] == expert_LGS[..., None, :]
    twice_LGS = (same.sum(axis=3) > 1) & (expert_LGS != EMPTY)
    twice_LP: BoolArray = twice_LGS.reshape(placement.slot_to_expert.shape)
    return twice_LP


def _within(request: PlanRequest, current: Placement, goal: Placement, max_moves: int) -> Placement:
    """As many layers of ``goal`` as the budget allows, those first that gain most per move."""
    moves_L = (goal.slot_to_expert != current.slot_to_expert).sum(axis=1)
    if moves_L.sum() <= max_moves:
        return goal
    peaks = [
        rank_loads(request.heat_LE, each, settled_shares(request, each), request.topology).max(axis=1)
        for each in (current, goal)
    ]
    gain_L = (peaks[0] - peaks[1]) / np.maximum(moves_L, 1)
    slot_to_expert_LP, left = current.slot_to_expert.copy(), max_moves
    for layer in np.argsort(-gain_L, kind="stable"):
        if gain_L[layer] > 0 and 0 < moves_L[layer] <= left:
            slot_to_expert_LP[layer] = goal.slot_to_expert[layer]
            left -= int(moves_L[layer])
    return Placement(slot_to_expert_LP, request.experts)


def _moves(current: Placement, goal: Placement) -> tuple[Move, ...]:
    changed = (goal.slot_to_expert != current.slot_to_expert) & (goal.slot_to_expert != EMPTY)
    layers, slots = np.nonzero(changed)
    return tuple(map(Move, layers.tolist(), slots.tolist(), goal.slot_to_expert[changed].tolist()))


def _reason(request: PlanRequest, start: Placement, planned: float, moves: int) -> str:
    if not request.heat_LE.any():
        return "nothing to do: there is no heat"
    if request.current is None:
        return f"a first placement: imbalance {planned:.3f}"
    if not moves:
        return f"nothing to move: imbalance {planned:.3f}, and no move lowers it enough"
    shares_LP = settled_shares(request, start)
    as_is = overall_imbalance(rank_loads(request.heat_LE, start, shares_LP, request.topology))
    return f"{moves} moves: imbalance {as_is:.3f} to {planned:.3f}"
