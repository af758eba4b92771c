"""Whether to act: scatter alone moves nothing, drift does, and what does not pay for itself is left."""

from dataclasses import replace

import numpy as np
import pytest

import isotherm as iso
from isotherm import decide
from isotherm.decide import make_decision
from isotherm.placement import rank_loads
from isotherm.planner import balanced_shares
from traffic import EXPERTS, LAYERS, TOPOLOGY, drawn, planned_for, run_mind, skewed

MEGABYTE = 2**20


def stretch(rng, part_LE, first, count, steps, **shape):
    return [drawn(rng, part_LE, (first + i) * steps, steps, **shape) for i in range(count)]


def true_imbalance(state, part_LE):
    """What the placement could do for the traffic that windows were drawn from."""
    shares = balanced_shares(part_LE, state.placement, TOPOLOGY)
    return iso.overall_imbalance(rank_loads(part_LE, state.placement, shares, TOPOLOGY))


def default_placement():
    return iso.Placement.default(iso.MoEShape(LAYERS, EXPERTS, 4), TOPOLOGY)


def with_placement(state, placement):
    return replace(state, placement=placement, shares=placement.even_shares())


@pytest.mark.parametrize(("steps", "slices"), [(2, 2), (8, 1), (32, 2), (256, 4)])
def test_steady_traffic_moves_nothing_and_a_real_drift_does(steps, slices):
    rng = np.random.default_rng(steps)
    before, after = skewed(1), skewed(2)
    state = planned_for(before, bytes_per_expert=MEGABYTE)
    state, calm = run_mind(state, stretch(rng, before, 0, 150, steps, slices=slices))
    assert {decision.action for decision in calm} == {"nothing"}
    assert all(decision.reason for decision in calm)
    was = true_imbalance(state, after)
    state, drift = run_mind(state, stretch(rng, after, 150, 12, steps, slices=slices))
    moved = [i for i, decision in enumerate(drift) if decision.action == "moves"]
    assert moved
    assert moved[0] <= 3
    assert was > 1.2 > 1.1 > true_imbalance(state, after)


def test_thin_windows_on_the_default_placement_still_improve_it():
    rng = np.random.default_rng(5)
    part = skewed(3)
    state = with_placement(planned_for(part), default_placement())
    was = true_imbalance(state, part)
    state, decisions = run_mind(state, stretch(rng, part, 0, 60, 2))
    values = [decision.by_shares for decision in decisions if decision.action == "moves"]
    assert values
    assert true_imbalance(state, part) < was - 0.05


def test_shares_of_steady_traffic_settle():
    rng = np.random.default_rng(6)
    part = skewed(4)
    state = planned_for(part)
    # Nearly all to the first replica of each expert.
    lopsided = 0.1 * state.placement.even_shares()
    for layer, row_P in enumerate(state.placement.slot_to_expert):
        _, first = np.unique(row_P, return_index=True)
        lopsided[layer, first] += 0.9
    state, decisions = run_mind(replace(state, shares=lopsided), stretch(rng, part, 0, 120, 16))
    changed = [i for i, decision in enumerate(decisions) if decision.action == "shares"]
    assert 1 <= len(changed) <= 4
    assert changed[0] <= 1
    assert changed[-1] < 60
    shares = rank_loads(part, state.placement, state.shares, TOPOLOGY)
    assert iso.overall_imbalance(shares) < 1.03


def alternating(rng, rounds, windows, steps):
    """Two kinds of traffic, one after the other, each for ``windows`` windows."""
    parts = skewed(7), skewed(8)
    for turn in range(rounds):
        yield from stretch(rng, parts[turn % 2], turn * windows, windows, steps)


def moves_in(decisions):
    return [i for i, decision in enumerate(decisions) if decision.action == "moves"]


def test_traffic_that_changes_before_moves_pay_is_left_alone():
    # Moving what is asked for takes some 30 s of a link, and a change lasts 128 steps of 40 ms.
    rng = np.random.default_rng(9)
    dear = {"bytes_per_expert": 400 * MEGABYTE, "link_bytes_per_second": 1e9}
    state = planned_for(skewed(7), **dear)
    state, decisions = run_mind(state, alternating(rng, 24, 4, 32))
    assert moves_in(decisions)[-1] < 6 * 4
    assert 100 < np.median(state.past.lives) < 160
    assert "no move would pay" in decisions[-3].reason or "moves that pay" in decisions[-3].reason
    # The same traffic where bytes cost nothing: moves follow it, until one placement fits both kinds.
    _, free = run_mind(planned_for(skewed(7)), alternating(np.random.default_rng(9), 24, 4, 32))
    assert moves_in(free)[-1] > 8 * 4
    assert len(moves_in(free)) > len(moves_in(decisions))


def layer_peaks(heat_LE, placement):
    """The hottest rank of each layer with the best shares, over the mean of all layers together."""
    load_LG = rank_loads(heat_LE, placement, balanced_shares(heat_LE, placement, TOPOLOGY), TOPOLOGY)
    return load_LG.max(axis=1) / load_LG.mean(axis=1).sum()


def test_layers_that_do_not_pay_for_their_bytes_stay():
    part = skewed(10) ** np.linspace(0.1, 1.5, LAYERS)[:, None]  # from nearly flat to very skewed
    part /= part.sum(axis=1, keepdims=True)
    window = drawn(np.random.default_rng(12), part, 0, 4000)
    state = with_placement(planned_for(part), default_placement())
    steps = 20_000 - 4000  # that traffic may stay, of which it has stayed so long

    def moved(millis):
        """The layers that move where one expert takes so long. Each pays for itself."""
        priced = replace(state, bytes_per_expert=int(25e6 * millis))
        decision = make_decision(priced, window, 4000)[1]
        assert decision.saved_ms >= decision.price_ms
        if decision.plan is None:
            return set()
        peaks = [layer_peaks(window.heat_LE, each) for each in (state.placement, decision.plan.placement)]
        moves_L = np.bincount([move.layer for move in decision.plan.moves], minlength=LAYERS)
        saved_L = 0.5 * 40 * steps * (peaks[0] - peaks[1])
        assert (saved_L >= millis * moves_L - 1e-6).all()
        return {move.layer for move in decision.plan.moves}

    sets = [moved(millis) for millis in (0, *np.geomspace(300, 3e5, 16))]
    assert sets[0] == set(range(LAYERS))
    assert sets[-1] == set()
    assert len({len(layers) for layers in sets}) >= 4


def test_a_decision_tells_what_it_weighed():
    state = planned_for(skewed(1), bytes_per_expert=MEGABYTE, max_moves=7)
    window = drawn(np.random.default_rng(1), skewed(2), 0, 64)
    after, decision = make_decision(state, window, 64)
    assert decision.action == "moves"
    assert len(decision.plan.moves) <= 7
    assert decision.moved_bytes == len(decision.plan.moves) * MEGABYTE
    assert decision.price_ms == pytest.approx(1e3 * decision.moved_bytes / 25e9)
    assert decision.imbalance > decision.by_shares > decision.by_moves
    # Saved: half of 40 ms a step, times the gain seen, for the steps that traffic may stay.
    most = 0.5 * 40 * (decision.by_shares - decision.by_moves) * 20_000
    assert 0.5 * most < decision.saved_ms <= most
    assert decision.predicted == pytest.approx(
        iso.overall_imbalance(
            rank_loads(window.heat_LE, decision.plan.placement, decision.plan.shares, TOPOLOGY)
        )
    )
    assert (after.past.plans, after.past.promised) == (1, decision.predicted)
    moved = replace(after, placement=decision.plan.placement, shares=decision.plan.shares)
    later = make_decision(moved, drawn(np.random.default_rng(2), skewed(2), 64, 64), 128)[1]
    assert later.promised == decision.predicted
    assert later.imbalance == pytest.approx(decision.predicted, abs=0.05)


def test_a_search_that_found_nothing_rests_and_comes_back_when_traffic_changes():
    calls = []

    def counted(monkeypatch):
        real = decide.make_plan
        monkeypatch.setattr(
            decide, "make_plan", lambda *args, **kwargs: calls.append(1) or real(*args, **kwargs)
        )

    rng, part = np.random.default_rng(13), skewed(10)
    # Nothing may move less than all of what there is: every search ends in a refusal.
    state = with_placement(planned_for(part, min_gain=0.0, confidence=1e9), default_placement())
    with pytest.MonkeyPatch.context() as monkeypatch:
        counted(monkeypatch)
        searched = []
        for window in stretch(rng, part, 0, 26, 64) + stretch(rng, skewed(11), 26, 1, 64):
            calls.clear()
            state, decision = make_decision(state, window, window.end_step)
            assert "may be chance" in decision.reason or decision.action == "shares"
            searched.append(bool(calls))
    assert [i for i, each in enumerate(searched) if each] == [0, 2, 5, 10, 19, 26]


def test_robust_plans_for_both_kinds_and_for_earlier_traffic():
    rng = np.random.default_rng(14)
    before, after = skewed(15), skewed(16)
    windows = stretch(rng, before, 0, 3, 400) + stretch(rng, after, 3, 3, 400)

    def worst(robust):
        state = with_placement(planned_for(before, robust=robust), default_placement())
        state, decisions = run_mind(state, windows)
        assert any(decision.action == "moves" for decision in decisions[3:])
        return max(true_imbalance(state, part) for part in (before, after))

    assert worst(True) < worst(False)


def test_kinds_weigh_what_they_are_set_to():
    rng = np.random.default_rng(17)
    prefill, decode = (drawn(rng, skewed(seed), 0, 400) for seed in (18, 19))
    heat = np.concatenate([prefill.heat_KSLE, decode.heat_KSLE])
    window = iso.HeatWindow(heat, None, prefill.slice_steps, np.ones(2, int), prefill.layer_ids)

    def imbalance(part_LE, **weights):
        state = with_placement(planned_for(skewed(18), **weights), default_placement())
        plan = make_decision(state, window, 400)[1].plan
        return iso.overall_imbalance(rank_loads(part_LE, plan.placement, plan.shares, TOPOLOGY))

    for part_LE, weights in (
        (prefill.heat_LE, {"decode_weight": 0.0}),
        (decode.heat_LE, {"prefill_weight": 0.0}),
        (prefill.heat_LE + 3 * decode.heat_LE, {"decode_weight": 3.0}),
    ):
        assert imbalance(part_LE, **weights) < 1.1 < imbalance(part_LE[:, ::-1], **weights)
