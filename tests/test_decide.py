"""The mind: when it does nothing, when shares are enough, and when weights have to move."""

import dataclasses

import numpy as np
import pytest

import isotherm as iso
from isotherm.decide import State, make_decision

TOPOLOGY = iso.Topology(ranks=2, slots_per_rank=3)
PLACEMENT = iso.Placement([[0, 1, 2, 3, 0, 1]], 4)  # rank 0: 0 1 2, rank 1: 3 0 1
FLAT = [10, 10, 10, 10]
SHARES_DO = [60, 10, 40, 10]  # expert 0 is on both ranks
MOVES_DO = [10, 10, 90, 10]  # expert 2 stands alone on rank 0


def window(heat_E):
    """Two slices alike, with tokens enough to be sure of."""
    heat = np.tile(100 * np.array(heat_E), (1, 2, 1, 1))
    loads = np.zeros((1, 2, 3), np.int64)
    return iso.HeatWindow(heat, loads, (0, 4, 8), (int(heat.sum()),), (7,))


def state(**changes):
    config = iso.Config(**{"mode": "full", **changes.pop("config", {})})
    fields = {
        "topology": TOPOLOGY,
        "config": config,
        "placement": PLACEMENT,
        "shares": PLACEMENT.even_shares(),
        "settled": True,
        "movable": True,
    }
    return State(**{**fields, **changes})


def decide_on(heat_E, **changes):
    return make_decision(state(**changes), window(heat_E), 8)[1]


def test_weights_move_where_shares_cannot_do_it():
    decision = decide_on(MOVES_DO)
    assert decision.action == "moves"
    assert decision.plan.moves
    assert decision.plan.layer_ids == (7,)
    assert decision.predicted < 1.03 < decision.imbalance
    assert decision.reason.startswith(f"{len(decision.plan.moves)} moves and new shares: imbalance")


def test_shares_alone_where_they_do():
    decision = decide_on(SHARES_DO)
    assert (decision.action, decision.plan.moves) == ("shares", ())
    assert decision.plan.placement == PLACEMENT
    assert decision.predicted == pytest.approx(1.0, abs=1e-6)
    assert decision.reason.startswith("new shares alone")


@pytest.mark.parametrize(
    ("heat", "changes", "reason"),
    [
        ([0, 0, 0, 0], {}, "no token in this window"),
        (MOVES_DO, {"settled": False}, "moves are under way"),
        (FLAT, {}, "balanced as well as it can be"),
    ],
)
def test_doing_nothing_has_a_reason(heat, changes, reason):
    decision = decide_on(heat, **changes)
    assert (decision.action, decision.plan) == ("nothing", None)
    assert reason in decision.reason


@pytest.mark.parametrize("changes", [{"movable": False}, {"config": {"mode": "shares"}}])
def test_nothing_moves_where_it_must_not(changes):
    assert decide_on(MOVES_DO, **changes).action != "moves"


def test_a_gain_too_small_moves_nothing_and_a_budget_is_kept():
    gain = decide_on(MOVES_DO, movable=False).predicted - decide_on(MOVES_DO).predicted
    assert decide_on(MOVES_DO, config={"min_gain": gain * 0.99}).action == "moves"
    assert decide_on(MOVES_DO, config={"min_gain": gain * 1.01}).action != "moves"
    assert decide_on(MOVES_DO, config={"max_moves": 0}).action != "moves"


def test_a_cap_says_how_fast_weights_move_and_not_whether():
    """Sixty layers of which each moves one expert: a single move gains a sixtieth of what all gain."""
    heat = np.tile(100 * np.array(MOVES_DO), (1, 2, 60, 1))
    many = iso.HeatWindow(
        heat, np.zeros((60, 2, 3), np.int64), (0, 4, 8), (int(heat.sum()),), tuple(range(60))
    )
    placement = iso.Placement(np.repeat(PLACEMENT.slot_to_expert, 60, axis=0), 4)
    fields = {"placement": placement, "shares": placement.even_shares()}
    for min_gain, moves in ((0.1, 1), (0.6, 0)):  # all sixty gain 0.5
        config = {"max_moves": 1, "min_gain": min_gain}
        decision = make_decision(state(**fields, config=config), many, 8)[1]
        assert (0 if decision.plan is None else len(decision.plan.moves)) == moves
        if moves:
            assert decision.by_shares - decision.by_moves == pytest.approx(0.5 / 60)


def test_moves_are_not_searched_where_no_layer_is_above_the_limit():
    below = decide_on(MOVES_DO, config={"max_imbalance": 1.6})
    assert below.by_shares == pytest.approx(1.5)
    assert (below.action, below.by_moves) == ("shares", None)
    assert decide_on(MOVES_DO, config={"max_imbalance": 1.4}).by_moves is not None


def test_a_pure_function_that_counts_its_plans():
    before = state()
    fields = {field.name: getattr(before, field.name) for field in dataclasses.fields(before)}
    (after, first), (_, second) = (make_decision(before, window(MOVES_DO), 8) for _ in range(2))
    assert first.plan.to_bytes() == second.plan.to_bytes()
    assert after.past.plans == 1
    assert all(getattr(before, name) is value for name, value in fields.items())
    assert make_decision(before, window(FLAT), 8)[0].past.plans == 0


def test_an_unknown_policy_is_told():
    with pytest.raises(ValueError, match="policy='best' is unknown"):
        decide_on(MOVES_DO, config={"policy": "best"})
