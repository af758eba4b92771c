"""The mind: what to do about a window of heat, as a pure function without torch.

The balancer calls it live, a replay calls it in virtual time: no decision is made anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from isotherm.arrays import FloatArray
from isotherm.config import Config
from isotherm.placement import Placement, Plan, rank_loads
from isotherm.planner import PlanRequest, balanced_shares, imbalance_bound, make_plan
from isotherm.topology import Topology
from isotherm.window import HeatWindow, layer_imbalance, overall_imbalance

Action = Literal["nothing", "shares", "moves"]

_SHARES_GAIN = 0.002
"""New shares are sent when they lower the overall imbalance by at least this: they cost a message."""


@dataclass(frozen=True, eq=False)
class Past:
    """What the mind remembers from one window to the next. Whoever calls it keeps this, and gives it back.

    Attributes:
        windows: the newest windows, oldest first, at most ``config.forecast_windows``.
        plans: plans decided so far.
        promised: the imbalance that the newest plan promised; None before the first.
    """

    windows: tuple[HeatWindow, ...] = ()
    plans: int = 0
    promised: float | None = None


@dataclass(frozen=True, eq=False)
class State:
    """What the mind knows when a window comes.

    Attributes:
        placement, shares: what is served now.
        settled: no move is under way.
        movable: weights can move: the engine lent them, and layers have redundant slots.
        bytes_per_expert: weights of one expert in one layer; 0: moves are taken to cost nothing.
        past: what `make_decision` returned with the window before.
    """

    topology: Topology
    config: Config
    placement: Placement
    shares: FloatArray
    settled: bool
    movable: bool
    bytes_per_expert: int = 0
    past: Past = Past()


@dataclass(frozen=True, eq=False)
class Decision:
    """What to do, and why.

    Attributes:
        action: nothing; new shares alone; or moves, with shares.
        plan: what to carry out; None for nothing.
        reason: in words.
        step: the clock when it was decided.
        imbalance: of the window, as the placement and shares in force would serve it.
        predicted: of the heat that is expected, once carried out.
        by_shares: what new shares alone would bring; None where that was not asked.
        by_moves: what moves and new shares would bring; None where that was not asked.
        promised: what the plan before this one promised for now; None where there was none.
        moved_bytes: weights that the plan moves, over all ranks.
        saved_ms, price_ms: step time that its moves save while traffic stays as it is, and what moving
            them costs; 0 without moves.
    """

    action: Action
    plan: Plan | None
    reason: str
    step: int
    imbalance: float
    predicted: float
    by_shares: float | None = None
    by_moves: float | None = None
    promised: float | None = None
    moved_bytes: int = 0
    saved_ms: float = 0.0
    price_ms: float = 0.0


def make_decision(state: State, window: HeatWindow, clock: int) -> tuple[State, Decision]:
    """The next state and what to do about ``window``, whose heat is the forecast of the next.

    ``clock`` is the engine's step. Weights are moved only where shares alone cannot do it: when a plan
    with moves promises an imbalance lower by ``config.min_gain`` than the best shares of the present
    placement. Deterministic.

    Raises:
        PlanRefusedError: the policy returned a plan that breaks an invariant.
        ValueError: the policy's name is unknown.
    """
    heat_LE = window.heat_LE.astype("float64")
    now = _overall(state, heat_LE, state.placement, state.shares)

    past = replace(state.past, windows=(*state.past.windows, window)[-state.config.forecast_windows :])
    state = replace(state, past=past)

    def decided(action: Action, plan: Plan | None, reason: str, predicted: float) -> Decision:
        return Decision(action, plan, reason, clock, now, predicted, promised=past.promised)

    if not heat_LE.any():
        return state, decided("nothing", None, "no token in this window", now)
    if not state.settled:
        return state, decided("nothing", None, "moves are under way", now)
    shares_plan = _reshare(state, window, heat_LE)
    by_shares = _overall(state, heat_LE, state.placement, shares_plan.shares)
    plan, predicted = shares_plan, by_shares
    action: Action = "shares"
    if state.config.mode != "shares" and state.movable:
        moves_plan = _with_moves(state, window, heat_LE)
        by_moves = _overall(state, heat_LE, moves_plan.placement, moves_plan.shares)
        if moves_plan.moves and by_shares - by_moves >= state.config.min_gain:
            plan, predicted, action = moves_plan, by_moves, "moves"
    if action == "shares" and now - by_shares < _SHARES_GAIN:
        return state, decided("nothing", None, f"balanced as well as it can be: {now:.3f}", now)
    reason = f"{len(plan.moves)} moves and new shares: imbalance {now:.3f} to {predicted:.3f}"
    if action == "shares":
        reason = f"new shares alone: imbalance {now:.3f} to {predicted:.3f}"
    plan = replace(plan, reason=reason)
    past = replace(past, plans=past.plans + 1, promised=predicted)
    return replace(state, past=past), decided(action, plan, reason, predicted)


def _overall(state: State, heat_LE: FloatArray, placement: Placement, shares_LP: FloatArray) -> float:
    return overall_imbalance(rank_loads(heat_LE, placement, shares_LP, state.topology))


def _reshare(state: State, window: HeatWindow, heat_LE: FloatArray) -> Plan:
    """The best shares for what the slots hold now."""
    shares_LP = balanced_shares(heat_LE, state.placement, state.topology)
    load_LG = rank_loads(heat_LE, state.placement, shares_LP, state.topology)
    return Plan(
        placement=state.placement,
        shares=shares_LP,
        moves=(),
        imbalance=layer_imbalance(load_LG),
        bound=imbalance_bound(heat_LE, state.topology),
        reason="new shares alone",
        layer_ids=window.layer_ids,
    )


def _with_moves(state: State, window: HeatWindow, heat_LE: FloatArray) -> Plan:
    request = PlanRequest(
        heat_LE=heat_LE,
        topology=state.topology,
        current=state.placement,
        max_imbalance=state.config.max_imbalance,
        max_moves=state.config.max_moves,
        shares="balanced",
    )
    return make_plan(request, policy=state.config.policy, layer_ids=window.layer_ids)
