"""What is expected, and for how certain: scatter, likeness, forecasts, halves, and the error of a gain."""

import numpy as np
import pytest

import isotherm as iso
from isotherm.placement import rank_loads
from isotherm.planner.outlook.forecast import History, forecasts, get_forecast, window_weights
from isotherm.planner.outlook.held_out import Served, held_out_gain
from isotherm.planner.outlook.noise import dispersion, is_change, likeness
from isotherm.planner.outlook.outlook import Glimpse, look_ahead, scatter_of
from isotherm.planner.outlook.past import Past, Promise
from isotherm.planner.policy import plugins as module
from traffic import SCATTER, TOPOLOGY, drawn, skewed

ONE = np.ones(1)


def heats(part_LE, tokens, count, seed=0):
    rng = np.random.default_rng(seed)
    return SCATTER * np.array(
        [[rng.multinomial(tokens, row) for row in part_LE] for _ in range(count)], float
    )


@pytest.mark.parametrize("tokens", [200, 20_000])
def test_scatter_is_what_counts_were_drawn_with_whatever_the_traffic(tokens):
    one, other = heats(skewed(1), tokens, 2)
    assert dispersion(one, other) == pytest.approx(SCATTER, rel=0.25)
    assert dispersion(one, 3 * heats(skewed(1), 20 * tokens, 1)[0]) == pytest.approx(SCATTER, rel=0.35)
    assert dispersion(one, heats(skewed(2), tokens, 1)[0]) > 1.5 * SCATTER
    assert np.isnan(dispersion(one, 0 * other))


def test_likeness_is_that_of_the_traffic_not_of_the_counts():
    plain = [(a * b).sum(axis=1) for a, b in ((skewed(1), skewed(2)), (skewed(1),) * 2, (skewed(2),) * 2)]
    true = float((plain[0] / np.sqrt(plain[1] * plain[2])).mean())
    pairs = zip(heats(skewed(1), 300, 60), heats(skewed(2), 300, 60, seed=1), strict=True)
    found = [likeness(*pair, SCATTER) for pair in pairs]
    assert np.mean([each.cosine for each in found]) == pytest.approx(true, abs=0.01)
    errors = [each.error for each in found]
    assert 0.5 < np.std([each.cosine for each in found]) / np.mean(errors) < 1.3
    same = [is_change(*pair, SCATTER) for pair in zip(*[iter(heats(skewed(1), 60, 80))] * 2, strict=True)]
    assert not any(same)
    assert all(is_change(*pair, 1.0) for pair in zip(*[iter(heats(skewed(1), 30, 20))] * 2, strict=True))
    assert all(
        is_change(*pair, SCATTER)
        for pair in zip(heats(skewed(1), 2000, 9), heats(skewed(3), 2000, 9), strict=True)
    )
    assert likeness(np.zeros((2, 4)), np.ones((2, 4)), 1.0) == (1.0, np.inf)


def history(*parts, tokens=5000):
    return History(np.concatenate([heats(part, tokens, 1, seed) for seed, part in enumerate(parts)]), SCATTER)


def test_forecasts_weigh_windows():
    a, b = skewed(1), skewed(2)
    past = history(a, a, b, a, a, a)
    assert window_weights("mean", past).tolist() == [1] * 6
    assert window_weights("last", past).tolist() == [0] * 5 + [1]
    assert window_weights("ewma", past) == pytest.approx(0.5 ** (np.arange(6)[::-1] / 2))
    assert window_weights("changepoint", past).tolist() == [0, 0, 0, 1, 1, 1]
    assert window_weights("changepoint", history(a, b)).tolist() == [0, 1]
    # Windows too thin to tell the two apart cut nothing.
    assert window_weights("changepoint", history(a, a, b, a, a, tokens=15)).tolist() == [1] * 5
    assert forecasts()[:4] == ("changepoint", "mean", "ewma", "last")


class Entry:
    value = "elsewhere:forecast"
    name = "theirs"

    def __init__(self, answer):
        self.answer = answer

    def load(self):
        if self.answer is None:
            raise ImportError("gone")
        return lambda history: self.answer


def test_forecasts_of_others_are_found_and_checked(monkeypatch):
    def offer(answer):
        monkeypatch.setattr(module, "entry_points", lambda **_: [Entry(answer)])

    past = history(skewed(1), skewed(1))
    offer([0.0, 2.0])
    assert forecasts()[-1] == "theirs"
    assert window_weights("theirs", past).tolist() == [0, 2]
    for answer in ([1.0], [0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0]):
        offer(answer)
        with pytest.raises(iso.PlanRefusedError, match="forecast 'theirs' answered with weights"):
            window_weights("theirs", past)
    offer(None)
    with pytest.raises(ValueError, match="'theirs' of elsewhere:forecast cannot be loaded: gone"):
        get_forecast("theirs")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="forecast='nonsense' is unknown: choose one of changepoint, mean"):
        get_forecast("nonsense")


def glimpses(*windows):
    seen = []
    for window in windows:
        seen.append(Glimpse.of(window, seen[-1] if seen else None))
    return tuple(seen)


def test_what_is_expected_is_the_mean_per_step_and_its_halves_are_apart():
    rng = np.random.default_rng(3)
    windows = [drawn(rng, skewed(1), start, steps) for start, steps in ((0, 40), (40, 80), (120, 40))]
    (case,) = look_ahead(glimpses(*windows), "mean", ONE, robust=False)
    assert case.heat_LE == pytest.approx(sum(w.heat_LE for w in windows) / 160)
    older = windows[0].heat_LE + windows[1].heat_SLE[0]
    assert case.older_LE == pytest.approx(older / 80)
    assert case.newer_LE == pytest.approx((windows[2].heat_LE + windows[1].heat_SLE[1]) / 80)
    # Poisson-like counts of 80 steps, scattered 8-fold, per step.
    assert case.scatter == pytest.approx(SCATTER / 80, rel=0.3)
    assert scatter_of(glimpses(*windows)) == pytest.approx([SCATTER], rel=0.3)
    (last,) = look_ahead(glimpses(*windows), "last", ONE, robust=False)
    assert last.older_LE == pytest.approx(windows[2].heat_SLE[0] / 20)


def test_one_slice_alone_is_not_enough():
    rng = np.random.default_rng(3)
    first, second = (drawn(rng, skewed(1), start, 10, slices=1) for start in (0, 10))
    assert look_ahead(glimpses(first), "mean", ONE, robust=False) == ()
    (case,) = look_ahead(glimpses(first, second), "last", ONE, robust=False)
    assert case.older_LE == pytest.approx(first.heat_LE / 10)
    assert scatter_of(glimpses(first, second)) == pytest.approx([SCATTER], rel=0.4)


def test_kinds_are_weighed_and_forecast_apart():
    rng = np.random.default_rng(4)
    prefill = [drawn(rng, skewed(s), start, 40) for s, start in ((1, 0), (1, 40), (5, 80))]
    decode = [drawn(rng, skewed(2), start, 40) for start in (0, 40, 80)]
    windows = [
        iso.HeatWindow(
            np.concatenate([p.heat_KSLE, d.heat_KSLE]), None, p.slice_steps, np.ones(2, int), p.layer_ids
        )
        for p, d in zip(prefill, decode, strict=True)
    ]
    seen, weight = glimpses(*windows), np.array([1.0, 3.0])
    (case,) = look_ahead(seen, "changepoint", weight, robust=False)
    expected = prefill[2].heat_LE / 40 + 3 * sum(w.heat_LE for w in decode) / 120
    assert case.heat_LE == pytest.approx(expected)
    cases = look_ahead(seen, "changepoint", weight, robust=True)
    assert [each.name for each in cases] == [
        "the forecast",
        "kind 0 alone",
        "kind 1 alone",
        "earlier traffic",
    ]
    assert cases[1].heat_LE == pytest.approx(prefill[2].heat_LE / 40)
    earlier = sum(w.heat_LE for w in prefill[:2]) / 80 + 3 * sum(w.heat_LE for w in decode[:2]) / 80
    assert cases[3].heat_LE == pytest.approx(earlier)
    assert len(look_ahead(seen, "mean", np.array([0.0, 1.0]), robust=True)) == 1


def test_the_error_of_a_gain_is_that_of_many_draws():
    part = skewed(6)
    old = iso.plan(skewed(7), TOPOLOGY)
    served = [Served(plan.placement, plan.shares) for plan in (old, iso.plan(part, TOPOLOGY, old.placement))]
    gains = [held_out_gain(heat, SCATTER, *served, TOPOLOGY) for heat in heats(part, 20_000, 200)]
    values = np.array([gain.value for gain in gains])
    assert np.mean([gain.error for gain in gains]) == pytest.approx(values.std(), rel=0.35)
    loads = [rank_loads(part, *each, TOPOLOGY) for each in served]
    assert values.mean() == pytest.approx(
        iso.overall_imbalance(loads[0]) - iso.overall_imbalance(loads[1]), abs=0.04
    )
    same = held_out_gain(part, SCATTER, served[0], served[0], TOPOLOGY)
    assert (same.value, same.error) == (0, 0)


def test_lives_of_traffic_are_learned():
    rng = np.random.default_rng(8)
    past = Past()
    for i in range(40):
        past = past.with_window(drawn(rng, skewed(1 + i // 5 % 2), 20 * i, 20), 8)
    assert len(past.glimpses) == 8
    assert past.lives == (100,) * 7
    usual = (1000 * 100**7) ** (1 / 8)
    assert past.steps_left(past.regime_step, 1000) == pytest.approx(usual)
    assert past.steps_left(past.regime_step + 40, 1000) == pytest.approx(usual - 40)
    assert past.steps_left(past.regime_step + 5000, 1000) == 5000
    idle = past.with_window(
        iso.HeatWindow(np.zeros((1, 2, 6, 32)), None, (800, 810, 820), (0,), tuple(range(6))), 8
    )
    assert idle is past


def test_promises_are_kept_or_not():
    before, after = (iso.plan(skewed(seed), TOPOLOGY).placement for seed in (1, 2))
    past = Past(regime_step=5).with_plan(1.1, Promise(before, 0.4, 5))
    assert past.with_outcome(before, lambda _: 9).open is None
    assert past.trust == 1
    done = past.with_outcome(after, lambda _: 9)
    assert done.kept == ()
    known = done.with_outcome(after, lambda placement: 0.1 if placement == before else 9)
    assert (known.kept, known.open) == (((0.4, 0.1),), None)
    assert known.trust == pytest.approx((0.4 + 0.1) / 0.8)
    assert done.with_outcome(after, lambda _: -3).trust == 0.5
    changed = Past(regime_step=9, open=done.open)
    assert changed.with_outcome(after, lambda _: 9).kept == ()
