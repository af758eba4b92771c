"""The mind: what to do about a window of heat, as a pure function without torch.

The balancer calls it live, a replay calls it in virtual time: no decision is made anywhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.config import Config
from isotherm.placement import Placement, Plan
from isotherm.planner import PlanRequest, imbalance_bound, make_plan
from isotherm.planner.outlook.kind_loads import kind_weights, loads_of
from isotherm.planner.outlook.outlook import look_ahead
from isotherm.planner.outlook.past import Past, Promise
from isotherm.planner.outlook.price import StepTime, moving_ms
from isotherm.planner.outlook.several import plan_for_worst
from isotherm.planner.outlook.trial import Trial
from isotherm.topology import Topology
from isotherm.window import HeatWindow, layer_imbalance

Action = Literal["nothing", "shares", "moves"]

_SHARES_GAIN = 0.002
"""New shares are sent when they lower the overall imbalance by at least this: they cost a message. Where
there was nothing to do, there is nothing to do while the imbalance rose by less."""

_WORSE = 0.01
"""A search for moves that rests is made at once where the imbalance that shares reach rose by this."""


@dataclass(frozen=True, eq=False)
class State:
    """What the mind knows when a window comes.

    Attributes:
        placement, shares: what is served now.
        settled: no move is under way.
        movable: weights can move: the engine lent them, and layers have redundant slots.
        bytes_per_expert: weights of one expert in one layer; 0: moves are taken to cost nothing.
        past: what `make_decision` returned with the window before.
        knows_window: the window was shown before, and is in ``past``: only the question is asked again.
        threads: how many may search layers side by side; decisions do not depend on it. Inside an engine 1.
    """

    topology: Topology
    config: Config
    placement: Placement
    shares: FloatArray
    settled: bool
    movable: bool
    bytes_per_expert: int = 0
    past: Past = field(default_factory=Past)
    knows_window: bool = False
    threads: int = 1


@dataclass(frozen=True, eq=False)
class Decision:
    """What to do, and why.

    Attributes:
        action: nothing; new shares alone; or moves, with shares.
        plan: what to carry out; None for nothing.
        reason: in words.
        step: the clock when it was decided.
        imbalance: of the window, as the placement and shares in force would serve it, in the load that
            ``config.objective`` names.
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
    """The next state and what to do about ``window``. ``clock`` is the engine's step. Deterministic.

    What is expected comes from the windows remembered (``config.forecast``). A change is planned on the older
    half of that heat and made only if it gains on the newer half too, by more than ``config.confidence``
    standard errors: new shares from an imbalance of 0.002, moves from ``config.min_gain``. Weights are moved
    only where shares alone cannot do it, and where the step time saved while traffic may stay as it is
    outweighs the time that the bytes take; layers that do not pay for theirs are left out.

    Where the answer was to do nothing, it is not sought again for 1, 2, 4, ... windows, as long as traffic
    and imbalance are what they were: most windows of steady traffic cost a twentieth of a search.

    Raises:
        PlanRefusedError: policy or forecast returned what breaks an invariant.
        ValueError: the name of the policy or the forecast is unknown.
    """
    weight_K = kind_weights(state.config, len(window.tokens_K))
    heat_LE = np.tensordot(weight_K, window.heat_KSLE.sum(axis=1), axes=1)
    # To count it twice would be to take the same tokens for two draws that agree.
    past = state.past if state.knows_window else state.past.with_window(window, state.config.forecast_windows)
    objective, by_kind = loads_of(state.topology, state.config, past.glimpses, window, weight_K)
    trial = Trial(state.topology, state.placement, state.shares, objective, by_kind, ())
    now = trial.imbalance(heat_LE, state.placement, state.shares)
    quiet = Decision("nothing", None, "", clock, now, now, promised=past.promised)

    def nothing(reason: str) -> tuple[State, Decision]:
        return replace(state, past=past), replace(quiet, reason=reason)

    if not heat_LE.any():
        return nothing("no token in this window")
    if not state.settled:
        return nothing("moves are under way")
    if not state.knows_window:
        past = past.with_outcome(state.placement, lambda before: trial.imbalance(heat_LE, before) - now)
    cases = look_ahead(past.glimpses, state.config.forecast, weight_K, robust=state.config.robust)
    if not cases:
        return nothing("one slice of heat alone cannot be checked against another: waiting for the next")
    trial = replace(trial, cases=cases)
    if past.calm is not None and past.calm.lasts(trial.level, _SHARES_GAIN, past.regime_step):
        quiet = replace(quiet, predicted=trial.as_is)
        return nothing(f"nothing has changed: {past.calm.reason}")
    moves = _weigh_moves(replace(state, past=past), window, trial)
    decision = _decide(state, window, trial, moves, quiet)
    if moves.searched and moves.plan is None:
        past = past.with_refusal(moves.reason, trial.by_shares)
    if decision.plan is None:
        past = past.with_calm(decision.reason, trial.level)
    else:
        moved = None
        if decision.by_shares is not None and decision.by_moves is not None and decision.action == "moves":
            moved = Promise(state.placement, decision.by_shares - decision.by_moves, past.regime_step)
        past = past.with_plan(decision.predicted, moved)
    return replace(state, past=past), decision


def _decide(state: State, window: HeatWindow, trial: Trial, moves: _Moves, quiet: Decision) -> Decision:
    """Moves where they pay, else new shares where they do, else nothing."""
    known = replace(quiet, predicted=trial.as_is, by_shares=trial.by_shares, by_moves=moves.by_moves)
    if moves.plan is not None:
        return _with_moves(state, window, trial, moves, known)
    reason = f"balanced as well as it can be: {quiet.imbalance:.3f}"
    if trial.as_is - trial.reshared >= _SHARES_GAIN:
        gain = trial.share_gain()
        if gain.is_sure(_SHARES_GAIN, state.config.confidence):
            reason = f"new shares alone: imbalance {quiet.imbalance:.3f} to {trial.reshared:.3f}"
            as_is = Plan(state.placement, trial.new_shares, (), np.ones(0), np.ones(0), reason, ())
            plan = _served(trial, as_is, trial.new_shares, reason, window.layer_ids)
            return replace(known, action="shares", plan=plan, reason=reason, predicted=trial.reshared)
        if gain.value >= _SHARES_GAIN:
            reason = f"new shares would gain {gain.value:.3f} ± {gain.error:.3f}, which may be chance"
    return replace(known, reason=moves.reason or reason)


def _with_moves(state: State, window: HeatWindow, trial: Trial, moves: _Moves, known: Decision) -> Decision:
    assert moves.plan is not None
    plan, count = moves.plan, len(moves.plan.moves)
    shares_LP = trial.best_shares(trial.cases[0], plan.placement)
    predicted = trial.imbalance(trial.cases[0].heat_LE, plan.placement, shares_LP)
    reason = f"{count} moves and new shares: imbalance {known.imbalance:.3f} to {predicted:.3f}"
    return replace(
        known,
        action="moves",
        plan=_served(trial, plan, shares_LP, reason, window.layer_ids),
        reason=reason,
        predicted=predicted,
        moved_bytes=count * state.bytes_per_expert,
        saved_ms=moves.saved_ms,
        price_ms=moving_ms(count * state.bytes_per_expert, state.config.link_bytes_per_second),
    )


def _served(trial: Trial, plan: Plan, shares_LP: FloatArray, reason: str, layer_ids: tuple[int, ...]) -> Plan:
    """The plan with these shares, and what they bring of the forecast."""
    heat_LE = trial.cases[0].heat_LE
    return replace(
        plan,
        shares=shares_LP,
        imbalance=layer_imbalance(trial.loads(heat_LE, plan.placement, shares_LP)),
        bound=imbalance_bound(trial.objective.weights(heat_LE), trial.topology),
        reason=reason,
        layer_ids=layer_ids,
    )


class _Moves(NamedTuple):
    """Whether to move. ``reason``: why not; empty where nothing was asked, and where moves pay. ``searched``:
    a search was made."""

    reason: str = ""
    plan: Plan | None = None
    by_moves: float | None = None
    saved_ms: float = 0.0
    searched: bool = True


def _weigh_moves(state: State, window: HeatWindow, trial: Trial) -> _Moves:
    """Plans on the older halves, and where that gains on the newer ones on all of the heat; then leaves out
    the layers that do not pay."""
    config, past, by_shares = state.config, state.past, trial.by_shares
    if config.mode == "shares" or not state.movable or by_shares - 1 < config.min_gain:
        return _Moves(searched=False)
    if len(trial.cases) == 1 and trial.left_to_moves(config.max_imbalance) < config.min_gain:
        why = (
            f"layers above {config.max_imbalance:.3f} have too little left to gain: {by_shares:.3f} by shares"
        )
        return _Moves(why, searched=False)
    steps = past.trust * past.steps_left(window.end_step, config.plan_life_steps)
    worth_ms = StepTime.of(config).saved_ms(1.0, steps)
    move_ms = moving_ms(state.bytes_per_expert, config.link_bytes_per_second)
    all_slots = state.placement.slot_to_expert.size
    affordable = all_slots if move_ms == 0 else min(all_slots, int(worth_ms * (by_shares - 1) / move_ms))
    most = min(config.max_moves, affordable)
    if most < 1:
        why = f"no move would pay within the {steps:.0f} steps that traffic may stay as it is"
        return _Moves(why, searched=False)
    worse = max(config.min_gain, _WORSE)
    if past.refusal is not None and past.refusal.lasts(by_shares, worse, past.regime_step):
        return _Moves(past.refusal.reason, searched=False)
    plan = _plan_moves(state, trial, [case.older_LE for case in trial.cases], most)
    if not plan.moves:
        return _Moves(f"no move lowers the imbalance enough: {by_shares:.3f} by shares alone")
    gain, asked = trial.move_gain(plan.placement), config.min_gain
    if len(plan.moves) == most < affordable and not gain.is_sure(asked, config.confidence):
        asked = _gain_asked_of_part(state, trial, most, affordable)
    if not gain.is_sure(asked, config.confidence):
        told = f"{gain.value:.3f} ± {gain.error:.3f} on heat that they were not planned on"
        return _Moves(f"moves would gain {told}, which is too little or may be chance")
    plan = _plan_paying(state, trial, most, worth_ms, move_ms)
    by_moves = trial.worst(plan.placement)
    saved_ms = worth_ms * min(by_shares - by_moves, gain.value)
    if by_shares - by_moves < asked or saved_ms <= move_ms * len(plan.moves):
        why = f"moves that pay for their bytes would gain {max(by_shares - by_moves, 0):.3f}, too little"
        return _Moves(why, None, by_moves)
    return _Moves("", plan, by_moves, saved_ms)


def _gain_asked_of_part(state: State, trial: Trial, most: int, affordable: int) -> float:
    """What ``most`` moves have to gain where a larger change is made of several plans: their part of
    ``config.min_gain``, if the whole change is sure to gain that. The cap says how fast, not whether."""
    whole = _plan_moves(state, trial, [case.older_LE for case in trial.cases], affordable)
    if not trial.move_gain(whole.placement).is_sure(state.config.min_gain, state.config.confidence):
        return state.config.min_gain
    return state.config.min_gain * most / max(most, len(whole.moves))


def _plan_paying(state: State, trial: Trial, most: int, worth_ms: float, move_ms: float) -> Plan:
    """The plan for all of the heat, without the layers whose moves do not pay for themselves."""
    heats = [case.heat_LE for case in trial.cases]
    while True:
        plan = _plan_moves(state, trial, heats, most)
        moves_L = _moves_per_layer(plan)
        pays_L = worth_ms * trial.layer_gains(plan.placement) > move_ms * moves_L
        if pays_L[moves_L > 0].all():
            return plan
        # The others get no more moves than they had, and without heat a layer stays as it is.
        most = int(moves_L[pays_L].sum())
        heats = [np.where(pays_L[:, None], heat_LE, 0.0) for heat_LE in heats]


def _moves_per_layer(plan: Plan) -> Int64Array:
    layers = np.array([move.layer for move in plan.moves], np.int64)
    return np.bincount(layers, minlength=plan.placement.layers)


def _plan_moves(state: State, trial: Trial, heats: list[FloatArray], most: int) -> Plan:
    """At most ``most`` moves for these heats. Layers without heat stay as they are."""

    objectives = [trial.objective_of(case) for case in trial.cases]

    def make(weight_LE: FloatArray) -> Plan:
        request = PlanRequest(
            heat_LE=weight_LE,
            topology=state.topology,
            current=state.placement,
            max_imbalance=state.config.max_imbalance,
            max_moves=most,
            shares="balanced",
            threads=state.threads,
            slots_per_round=state.config.moves_in_flight,
        )
        return make_plan(request, policy=state.config.policy)

    def serve(place: int, plan: Plan) -> FloatArray:
        return trial.loads(heats[place], plan.placement, objective=objectives[place])

    weights = [each.weights(heat_LE) for each, heat_LE in zip(objectives, heats, strict=True)]
    return plan_for_worst(weights, make, serve)
