"""What was answered with no is not asked again at once: when it is, and when it must be."""

from dataclasses import replace

import numpy as np
import pytest

from isotherm.planner.outlook.past import Past, Rest
from isotherm.planner.served import objective
from isotherm.window import HeatWindow
from traffic import drawn, planned_for, run_mind, skewed

STEPS = 1000


@pytest.fixture
def asked(monkeypatch):
    """Calls of what finds the best shares: no answer is sought without it."""
    calls = []
    real = objective.balanced_shares
    monkeypatch.setattr(objective, "balanced_shares", lambda *args: calls.append(1) or real(*args))
    return calls


def windows(part_LE, count, first=0, seed=0):
    rng = np.random.default_rng(seed)
    return [drawn(rng, part_LE, (first + i) * STEPS, STEPS) for i in range(count)]


def seek(state, asked, windows):
    """The state, the windows in which an answer was sought, and the decisions."""
    sought, decisions = [], []
    for number, window in enumerate(windows):
        asked.clear()
        state, (decision,) = run_mind(state, [window])
        decisions.append(decision)
        if asked:
            sought.append(number)
    return state, sought, decisions


def test_steady_traffic_is_looked_at_less_and_less_and_told_why(asked):
    _, sought, decisions = seek(planned_for(skewed(1)), asked, windows(skewed(1), 40))
    assert {decision.action for decision in decisions} == {"nothing"}
    assert sought == [0, 2, 5, 10, 19, 36]
    resting = decisions[3]
    assert resting.reason == f"nothing has changed: {decisions[2].reason}"
    assert (resting.by_shares, resting.by_moves) == (None, None)
    assert 1 < resting.predicted < 1.05


@pytest.mark.parametrize("blend", [0.3, 1.0])
def test_a_drift_and_a_change_of_traffic_end_the_rest_at_once(asked, blend):
    part = skewed(1)
    state, _, _ = seek(planned_for(part), asked, windows(part, 24))
    assert state.past.calm.wait > 8
    later = (1 - blend) * part + blend * skewed(2)
    _, sought, decisions = seek(state, asked, windows(later, 8, first=24, seed=1))
    assert sought[:1] == [0]
    assert any(decision.action != "nothing" for decision in decisions)


def test_less_heat_of_the_same_traffic_ends_no_rest(asked):
    part = skewed(1)
    state, _, _ = seek(planned_for(part), asked, windows(part, 24))
    thin = replace(windows(part, 1, first=24)[0], tokens_K=np.ones(1, int))
    idle = HeatWindow(0 * thin.heat_KSLE, None, thin.slice_steps, thin.tokens_K, thin.layer_ids)
    after, sought, decisions = seek(state, asked, [idle])
    assert (sought, decisions[0].reason) == ([], "no token in this window")
    assert after.past.calm == state.past.calm  # an idle engine forgets nothing


def test_every_case_that_is_planned_for_is_watched(asked):
    """One kind stays as it was, the other changes: with `robust` each is looked at by itself."""
    part = skewed(1)
    state = planned_for(part, robust=True, forecast="mean")
    pairs = [windows(part, 13, seed=seed) for seed in (1, 2)]
    pairs[1][12:] = windows(skewed(3), 1, first=12, seed=3)
    both = [
        HeatWindow(
            np.concatenate([50 * a.heat_KSLE, b.heat_KSLE]), None, a.slice_steps, np.ones(2, int), a.layer_ids
        )
        for a, b in zip(*pairs, strict=True)
    ]
    _, sought, _ = seek(state, asked, both)
    assert sought == [0, 2, 5, 10, 12]


def test_rests_double_up_to_64_windows_and_end_with_what_they_rest_on():
    rest, waits = None, []
    for _ in range(9):
        rest = Rest.after(rest, "why", 1.1, 7)
        waits.append(rest.wait - 1)
    assert waits == [1, 2, 4, 8, 16, 32, 64, 64, 64]
    assert rest.lasts(1.149, 0.05, 7)
    assert not rest.lasts(1.151, 0.05, 7)
    assert not rest.lasts(1.1, 0.05, 8)
    assert not replace(rest, wait=0).lasts(1.1, 0.05, 7)


def test_calm_lasts_no_longer_than_the_search_for_moves_rests():
    searched = Past().with_refusal("no move", 1.2).with_calm("no move", 1.3)
    assert searched.calm.wait == searched.refusal.wait == 2
    for _ in range(4):
        searched = searched.with_calm("no move", 1.3)
    assert searched.calm.wait == 2
    # A search that is due but is not asked for holds nothing up.
    overdue = replace(searched, refusal=replace(searched.refusal, wait=0))
    assert overdue.with_calm("no move", 1.3).calm.wait > 8
    assert searched.with_plan(1.0, None).calm is None
