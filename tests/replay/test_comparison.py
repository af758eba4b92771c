"""Policies side by side against serving by hand, and the rule of the answer case by case."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import isotherm as iso
from isotherm.placement import rank_loads
from isotherm.planner.advice import advise
from isotherm.planner.outlook.price import StepTime
from isotherm.replay import Cluster, side_by_side
from isotherm.replay.comparison import compare_policies
from isotherm.replay.lengths import best_length
from isotherm.replay.side_by_side import ServedWindow
from isotherm.replay.verdict import judge
from isotherm.window import overall_imbalance
from replay.made import drifting_windows

TOPOLOGY = iso.Topology.for_model(experts=8, redundant=4, ranks=4, nodes=2)
STEP = StepTime(50, 0.5)
EXAMPLE = Path(__file__).parents[2] / "examples" / "compare_workloads.py"


def served(fall, *, moving_seconds=0.0, steps=100):
    return ServedWindow(steps, 2.0 * (1 - fall), 2.0, 5, moving_seconds)


@pytest.mark.parametrize(
    ("windows", "answer"),
    [
        ([], "not enough data"),
        ([served(0.5)], "not enough data"),
        ([served(0.0501)] * 2, "yes"),
        ([served(0.0499)] * 2, "no"),
        ([served(0.2)] * 4 + [served(0.0)], "yes"),
        ([served(0.2)] * 3 + [served(0.0)], "no"),
        # 100 steps of 50 ms, of which the hottest rank computes 2 x 25 ms: 5 s of its work. Moves take 1 s.
        ([served(0.2501, moving_seconds=1.0)] * 2, "yes"),
        ([served(0.2499, moving_seconds=1.0)] * 2, "no"),
    ],
)
def test_the_answer_is_that_of_the_rule(windows, answer):
    verdict = judge(windows, STEP)
    assert verdict.answer == answer
    assert verdict.windows == len(windows)


def test_without_a_step_moves_cost_nothing_and_one_matrix_is_never_enough():
    windows = [served(0.06, moving_seconds=99.0)] * 2
    assert judge(windows, STEP).answer == "no"
    assert judge(windows, None).answer == "yes"
    assert "moves not counted" in judge(windows, None).reason
    assert judge([served(0.5)] * 9, STEP, one_matrix=True).answer == "not enough data"


@pytest.mark.parametrize("engine", ["isotherm", "sglang"])
def test_each_window_is_served_by_the_plan_of_the_one_before(engine):
    windows = drifting_windows(5)
    cluster = Cluster(TOPOLOGY, step=STEP)
    found = compare_policies(windows, cluster, engine=engine, policy="deepseek")
    current = iso.Placement.default(iso.MoEShape(3, 8, 2), TOPOLOGY)
    untouched = iso.plan(windows[1], TOPOLOGY, current, engine=engine, policy="static")
    for before, window, row in zip(windows[:-1], windows[1:], found.chosen.windows, strict=True):
        plan = iso.plan(before, TOPOLOGY, current, engine=engine, policy="deepseek")
        loads = [rank_loads(heat, plan.placement, plan.shares, TOPOLOGY) for heat in window.heat_SLE]
        assert row.imbalance == pytest.approx(overall_imbalance(np.stack(loads)))
        assert row.moves == (plan.placement.slot_to_expert != current.slot_to_expert).sum()
        assert row.moving_seconds > 0
        current = plan.placement
    first = found.chosen.windows[0].unbalanced
    shares = untouched.shares if engine == "sglang" else untouched.placement.even_shares()
    loads = [rank_loads(heat, untouched.placement, shares, TOPOLOGY) for heat in windows[1].heat_SLE]
    assert first == pytest.approx(overall_imbalance(np.stack(loads)))
    assert {row.policy for row in found.rows} >= {"incremental", "deepseek", "swift", "flash", "static"}
    report = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    heat_LE = sum(window.heat_LE for window in windows)
    even = "balanced" if engine == "isotherm" else "even"
    advice = advise(heat_LE, 4, nodes=2, bytes_per_expert=cluster.expert_bytes, shares=even)
    assert report["redundancy"]["advised"] == advice.redundant
    assert [row["redundant"] for row in report["redundancy"]["rows"]] == [0, 4, 8, 16]


def test_lengths_are_multiples_and_the_best_one_falls_furthest():
    windows = drifting_windows(12)
    found = compare_policies(windows, Cluster(TOPOLOGY), policy="incremental")
    assert [(row.steps, row.windows) for row in found.lengths] == [(8, 12), (16, 6), (32, 3)]
    best = best_length(found.lengths)
    assert best.fall == max(row.fall for row in found.lengths)
    heats = [window.heat_LE / window.heat_LE.sum(axis=1, keepdims=True) for window in windows]
    errors = [np.abs(b - a).sum(axis=1).mean() / 2 for a, b in pairwise(heats)]
    assert found.lengths[0].forecast_error == pytest.approx(np.mean(errors))
    assert best_length(()) is None


def test_one_matrix_is_served_by_its_own_plan():
    found = compare_policies(drifting_windows(1), Cluster(TOPOLOGY))
    assert found.verdict.answer == "not enough data"
    assert found.lengths == ()
    assert found.chosen.balancedness > 1 / found.chosen.windows[0].unbalanced
    assert found.as_dict()["served"] == "the window planned on"


def test_step_time_is_a_bound_where_the_step_is_not_known():
    windows = drifting_windows(3)
    known = compare_policies(windows, Cluster(TOPOLOGY, step=STEP))
    unknown = replace(known, step=None)
    served = known.chosen.windows
    before = sum(1 + 0.5 * (each.unbalanced - 1) for each in served)
    after = sum(1 + 0.5 * (each.imbalance - 1) for each in served)
    assert known.step_fall == pytest.approx(1 - after / before)
    assert known.step_fall < unknown.step_fall == pytest.approx(known.chosen.mean_fall(None))
    assert unknown.as_dict()["step_time"]["is_upper_bound"]


def test_a_policy_that_refuses_is_a_row_and_an_error_where_it_is_the_one_in_question(monkeypatch):
    def refusing(request):
        return np.zeros((request.layers, request.topology.slots), np.int64)

    monkeypatch.setitem(iso.planner.policy.registry._POLICIES.ours, "refusing", refusing)
    found = compare_policies(drifting_windows(2), Cluster(TOPOLOGY))
    row = next(row for row in found.rows if row.policy == "refusing")
    assert "have no slot" in row.refused
    with pytest.raises(iso.PlanRefusedError, match="refusing"):
        compare_policies(drifting_windows(2), Cluster(TOPOLOGY), policy="refusing")
    with pytest.raises(ValueError, match="policy='none' is unknown"):
        compare_policies(drifting_windows(2), Cluster(TOPOLOGY), policy="none")


def test_the_example_compares_workloads_in_the_order_of_their_names(tmp_path, monkeypatch, capsys):
    for name, window in zip("abc", drifting_windows(12)[::4]):
        (tmp_path / f"{name}.json").write_text(json.dumps({"logical_count": window.heat_LE.tolist()}))
    picture = tmp_path / "out.png"
    arguments = ["--traces", str(tmp_path), "--ranks", "4", "--redundant", "4", "--out", str(picture)]
    monkeypatch.setattr(sys, "argv", ["compare_workloads.py", *arguments])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "3 changes of workload" in capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_compiling_is_no_part_of_the_time_of_a_plan(monkeypatch):
    planned = []
    real = side_by_side.plan
    monkeypatch.setattr(
        side_by_side, "plan", lambda heat, *args, **named: planned.append(heat) or real(heat, *args, **named)
    )
    side_by_side._compile.cache_clear()
    windows = drifting_windows(3)
    for _ in range(2):
        side_by_side.serve_policy("swift", windows, Cluster(TOPOLOGY), "isotherm")
    assert np.shape(planned[0]) == (1, 4)  # something small, once, before any is timed
    assert planned[1:] == windows[:2] * 2
