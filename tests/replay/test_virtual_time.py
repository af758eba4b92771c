"""A replay against arithmetic step by step, against a live run, and its totals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

import isotherm as iso
from isotherm.planner import get_policy
from isotherm.planner.outlook.price import StepTime
from isotherm.replay import Cluster, CompetitionTime, replay_trace
from isotherm.replay.course import Course, Pace, aim, arrive
from isotherm.replay.serving import InForce, serve_window
from isotherm.window import layer_imbalance, overall_imbalance
from ranks import run_ranks
from replay.made import drifting_windows

TOPOLOGY = iso.Topology.for_model(experts=8, redundant=4, ranks=4, nodes=2)
FULL = iso.Config(mode="full", window_steps=8, min_gain=0.01, moves_in_flight=2, confidence=0.0)
EXPERT_BYTES = FULL.move_bytes_per_step


def loads_by_step(window, in_force):
    """Loads [steps, layers, ranks], each pair counted by hand; ``in_force(step)``: slots and shares."""
    loads = np.zeros((window.steps, len(window.layer_ids), TOPOLOGY.ranks))
    for step in range(window.start_step, window.end_step):
        part = np.searchsorted(window.slice_steps, step, side="right") - 1
        length = window.slice_steps[part + 1] - window.slice_steps[part]
        slots_LP, shares_LP = in_force(step)
        for (layer, slot), expert in np.ndenumerate(slots_LP):
            if expert >= 0:
                heat = window.heat_SLE[part, layer, expert] / length
                loads[step - window.start_step, layer, TOPOLOGY.rank_of(slot)] += (
                    heat * shares_LP[layer, slot]
                )
    return loads


def test_a_window_is_served_by_what_is_in_force_in_each_step():
    (window,) = drifting_windows(1)
    placements = [iso.Placement.default(iso.MoEShape(3, 8, 2), TOPOLOGY)]
    placements.append(iso.Placement(np.roll(placements[0].slot_to_expert, 1, axis=1), 8))
    spans = [
        InForce(start, end, placement, placement.even_shares())
        for start, end, placement in ((0, 3, placements[0]), (3, 8, placements[1]))
    ]
    served = serve_window(window, spans, TOPOLOGY)
    loads = loads_by_step(
        window, lambda step: (spans[step >= 3].placement.slot_to_expert, spans[step >= 3].shares)
    )
    assert served.overall == pytest.approx(overall_imbalance(loads))
    assert served.par == pytest.approx(layer_imbalance(loads).mean())
    assert served.overall != pytest.approx(serve_window(window, [spans[0]], TOPOLOGY).overall)


def test_plans_are_in_force_one_window_late_and_moves_take_their_steps():
    windows, decisions = drifting_windows(12), []
    cluster = Cluster(TOPOLOGY, expert_bytes=EXPERT_BYTES, step=StepTime(100, 0.5))
    report = replay_trace(windows, cluster, FULL, delay_steps=1, on_decision=decisions.append)
    asked = [row for row in report.windows if row.reason != "moves are under way"]
    assert [row.reason for row in asked] == [decision.reason for decision in decisions]
    assert {"moves"} <= {decision.action for decision in decisions}
    start = iso.Placement.default(iso.MoEShape(3, 8, 2), TOPOLOGY)
    # The first window: as loaded. What it decided begins to be in force in the second, after one step.
    even = loads_by_step(windows[0], lambda step: (start.slot_to_expert, start.even_shares()))
    assert (
        report.windows[0].imbalance == report.windows[0].unbalanced == pytest.approx(overall_imbalance(even))
    )
    plan = decisions[0].plan
    assert report.windows[0].moves == 0
    assert report.windows[1].moves > 0
    # Two slots are retired in step 9 and published 3 steps later: 1 to leave them, 2 for their bytes.
    batches = -(-len(plan.moves) // 2)
    first_settled = report.windows.index(asked[1])
    assert 9 + 3 * batches <= windows[first_settled].end_step
    assert sum(row.moves for row in report.windows[: first_settled + 1]) >= len(plan.moves)
    for row in report.windows:
        assert row.saved_seconds == pytest.approx(8 * 0.1 * 0.5 * (row.unbalanced - row.imbalance))


def test_the_way_is_served_by_what_was_known_when_it_began():
    """Two slots at a time, over several windows: each step by a course of its own, and no decision there."""
    windows, decisions = drifting_windows(6), []
    cluster = Cluster(TOPOLOGY, expert_bytes=2 * FULL.move_bytes_per_step)
    report = replay_trace(windows, cluster, FULL, delay_steps=3, on_decision=decisions.append)
    assert decisions[0].action == "moves"
    pace = Pace(cluster, FULL.moves_in_flight, FULL.move_bytes_per_step)
    start = iso.Placement.default(iso.MoEShape(3, 8, 2), TOPOLOGY)
    course = aim(Course.start(start), decisions[0].plan, 8 + 3, windows[0].heat_LE, pace)
    way = {}
    for step in range(8, 24):
        while course.ready_step == step:
            course = arrive(course, windows[step // 8 - 1].heat_LE, pace)
        way[step] = (course.live, course.shares)
    for number in (1, 2):
        loads = loads_by_step(windows[number], way.get)
        assert report.windows[number].imbalance == pytest.approx(overall_imbalance(loads))
    under_way = [row for row in report.windows if row.reason == "moves are under way"]
    assert under_way
    assert len(decisions) == len(windows) - len(under_way)


def test_an_engine_that_was_started_again_is_balanced_as_if_its_steps_went_on():
    """As `isotherm record --append` leaves them: steps count from 0 again, and what was decided at step 40
    does not wait until that comes once more."""
    windows = drifting_windows(10)
    again = [replace(each, slice_steps=tuple(step - 40 for step in each.slice_steps)) for each in windows[5:]]
    assert again[0].start_step == 0
    cluster = Cluster(TOPOLOGY, expert_bytes=EXPERT_BYTES)
    report = replay_trace([*windows[:5], *again], cluster, FULL, delay_steps=3)
    assert report == replay_trace(windows, cluster, FULL, delay_steps=3)
    assert report.windows[-1].end_step == 80
    assert [window.action for window in report.windows[5:]] != ["nothing"] * 5


def test_shares_alone_by_hand():
    windows = drifting_windows(6)
    decisions = []
    config = iso.Config(mode="shares", window_steps=8, confidence=0.0)
    report = replay_trace(windows, Cluster(TOPOLOGY), config, on_decision=decisions.append)
    slots_LP = iso.Placement.default(iso.MoEShape(3, 8, 2), TOPOLOGY).slot_to_expert
    shares_LP = iso.Placement(slots_LP, 8).even_shares()
    for window, row, decision in zip(windows, report.windows, decisions, strict=True):
        loads = loads_by_step(window, lambda step, shares_LP=shares_LP: (slots_LP, shares_LP))
        assert row.imbalance == pytest.approx(overall_imbalance(loads))
        if decision.plan is not None:
            shares_LP = decision.plan.shares
    assert report.moves == 0
    assert report.count("shares") >= 2


def test_observing_changes_nothing():
    report = replay_trace(drifting_windows(4), Cluster(TOPOLOGY), iso.Config(mode="observe", window_steps=8))
    assert all(row.imbalance == row.unbalanced for row in report.windows)
    assert report.saved_seconds is None


def test_the_score_is_that_of_the_competition():
    windows = drifting_windows(4, steps=600)
    report = replay_trace(windows, Cluster(TOPOLOGY), iso.Config(mode="observe"))
    placement = iso.Placement.default(iso.MoEShape(3, 8, 2), TOPOLOGY)
    # 1,024 steps have passed after the second window, and after the fourth.
    heat_LE = windows[0].heat_LE + windows[1].heat_LE
    request = iso.planner.PlanRequest(heat_LE, TOPOLOGY, placement, shares="even")
    goal = iso.Placement(get_policy("deepseek")(request), 8)
    spans = [InForce(0, 2400, each, each.even_shares()) for each in (placement, goal)]
    pars = [serve_window(window, [spans[number > 1]], TOPOLOGY).par for number, window in enumerate(windows)]
    assert report.yardstick.par == pytest.approx(np.mean(pars))
    request = iso.planner.PlanRequest(windows[2].heat_LE + windows[3].heat_LE, TOPOLOGY, goal, shares="even")
    last = get_policy("deepseek")(request)
    changed = (goal.slot_to_expert != placement.slot_to_expert).sum() + (last != goal.slot_to_expert).sum()
    assert report.yardstick.changed_slots == changed
    assert report.time.changed_slots == 0
    assert report.score == pytest.approx(100 * report.yardstick.seconds / report.time.seconds)
    assert CompetitionTime(1.5, 1000).seconds == pytest.approx(60 * 1.5 + 1000 * 88_080_384 / 900e9)


def test_a_trace_too_short_has_no_score_and_an_empty_one_is_told():
    windows = drifting_windows(2)
    assert replay_trace(windows, Cluster(TOPOLOGY), FULL).score is None
    with pytest.raises(ValueError, match="no window"):
        replay_trace([], Cluster(TOPOLOGY), FULL)
    with pytest.raises(ValueError, match="hold fewer than experts=8"):
        replay_trace(windows, Cluster(iso.Topology(2, 3)), FULL)


# -- a live run, recorded -----------------------------------------------------------------------------------

SHAPE = iso.MoEShape(2, 8, 2, layer_ids=(1, 4))
LIVE = iso.Topology.for_model(experts=8, redundant=2, ranks=2)
LIVE_CONFIG = iso.Config(mode="full", window_steps=16, min_gain=0.005)
WEIGHTS_BYTES = 6 * 4


def serve_live(rank):
    """Traffic whose hot experts change twice; every window and every decision of the balancer."""
    balancer = iso.Balancer(
        SHAPE,
        LIVE,
        group=dist.new_group(backend="gloo"),
        weights=[{"up": torch.zeros(LIVE.slots_per_rank, 6)} for _ in range(SHAPE.layers)],
        config=LIVE_CONFIG,
        inline=True,
    )
    windows, decisions = [], []
    balancer.on_window(windows.append)
    balancer.on_decision(decisions.append)
    for step in range(16 * 16):
        rng = np.random.default_rng([rank, step])
        weights_E = np.ones(8)
        weights_E[(np.array([2, 3, 4]) + 2 * (step // 96)) % 8] = 9
        with balancer.step(60):
            for layer in range(SHAPE.layers):
                picks = np.argsort(rng.random((60, 8)) / weights_E, axis=1)[:, :2]
                balancer.route(layer, torch.from_numpy(picks.copy()))
    balancer.close()
    return windows, decisions, balancer.placement


def test_a_recorded_live_run_replays_to_the_same_plans(tmp_path):
    windows, live, ended = run_ranks(serve_live, 2, tmp_path)[0]
    # While weights travel the mind is not asked, and how many steps that takes is a matter of the clock.
    seen = [window for window in windows if window.end_step in {decision.step for decision in live}]
    assert len(seen) == len(live) >= 10
    assert sum(decision.action == "moves" for decision in live) >= 2
    replayed = []
    cluster = Cluster(LIVE, expert_bytes=WEIGHTS_BYTES)
    replay_trace(seen, cluster, LIVE_CONFIG, on_decision=replayed.append)
    for ours, theirs in zip(replayed, live, strict=True):
        assert (ours.action, ours.reason) == (theirs.action, theirs.reason)
        if theirs.plan is not None:
            assert ours.plan.to_bytes() == theirs.plan.to_bytes()
    moved = [decision.plan.placement for decision in replayed if decision.action == "moves"]
    assert moved[-1] == ended
