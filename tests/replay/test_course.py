"""Weights on their way in virtual time: always served, always arriving, never faster than the budget."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import isotherm as iso
from isotherm.placement import check_shares
from isotherm.planner import balanced_shares
from isotherm.planner.outlook.price import StepTime
from isotherm.replay.cluster import Cluster
from isotherm.replay.course import Course, Pace, aim, arrive

TOPOLOGY = iso.Topology(ranks=4, slots_per_rank=3, nodes=2)
EXPERTS = 9


def placements(draw):
    """Two layers with every expert and three redundant slots, in any order."""
    rows = [
        draw(
            st.permutations(
                [*range(EXPERTS), *draw(st.lists(st.integers(0, EXPERTS - 1), min_size=3, max_size=3))]
            )
        )
        for _ in range(2)
    ]
    return iso.Placement(np.array(rows), EXPERTS)


def a_plan(placement):
    ones = np.ones(placement.layers)
    return iso.Plan(placement, placement.even_shares(), (), ones, ones, "", (0, 1))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_goal_is_reached_and_every_expert_served_on_the_way(data):
    start, goal = placements(data.draw), placements(data.draw)
    limit = data.draw(st.integers(1, 5))
    pace = Pace(Cluster(TOPOLOGY, expert_bytes=10), in_flight=limit, bytes_per_step=20)
    heat = np.random.default_rng(0).integers(1, 9, (2, EXPERTS))
    course, epochs = aim(Course.start(start), a_plan(goal), 100, heat, pace), 0
    while course.ready_step is not None:
        before = course
        course = arrive(course, heat, pace)
        epochs += 1
        assert epochs < 100
        check_shares(course.placement, course.shares)  # the placement itself insists on every expert
        held = {(move.layer, move.slot): move.expert for move in before.batch}
        for slot in np.argwhere(course.live != before.live):
            assert course.live[tuple(slot)] in (-1, held.get(tuple(slot)))
        if course.batch:
            assert len(course.batch) <= limit
            assert (course.shares == balanced_shares(heat, course.placement, TOPOLOGY)).all()
            assert course.ready_step == before.ready_step + 1 + -(-len(course.batch) * 10 // 20)
    assert course.placement == goal
    assert (course.shares == goal.even_shares()).all()
    needed = int((start.slot_to_expert != goal.slot_to_expert).sum())
    assert needed <= course.moves <= 3 * needed


def test_links_are_as_busy_as_the_rank_that_receives_most():
    cluster = Cluster(TOPOLOGY, expert_bytes=100, link_bytes_per_second=10, node_bytes_per_second=50)
    # Rank 0 receives from its own node (2 s) and from the other (10 s), rank 3 from itself.
    assert cluster.move_seconds(np.array([0, 1, 9]), np.array([3, 6, 10])) == pytest.approx(12)
    assert cluster.move_seconds(np.array([], int), np.array([], int)) == 0
    pace, heat = Pace(cluster, in_flight=9, bytes_per_step=1000), np.ones((1, EXPERTS))
    start = iso.Placement(np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 0, 0]]), EXPERTS)
    goal = iso.Placement(np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 6, 8, 1]]), EXPERTS)
    course = arrive(aim(Course.start(start), a_plan(goal), 0, heat, pace), heat, pace)
    # Slots 10 and 11, both of rank 3: expert 8 from rank 2 of its node, expert 1 from the other node.
    assert course.moving_seconds == pytest.approx(2 + 10)


@pytest.mark.parametrize("name", ["expert_bytes", "link_bytes_per_second", "node_bytes_per_second"])
@pytest.mark.parametrize("value", [0, float("nan"), float("inf")])
def test_a_cluster_names_what_is_wrong(name, value):
    with pytest.raises(ValueError, match=f"{name}={value} must be"):
        Cluster(TOPOLOGY, **{name: value})


def test_time_is_saved_by_the_part_of_a_step_that_the_hottest_rank_takes():
    cluster = Cluster(TOPOLOGY, step=StepTime(100, 0.5), link_bytes_per_second=7)
    assert cluster.saved_seconds(10, 2.0, 1.0) == pytest.approx(10 * 0.1 * 0.5 * 1.0)
    assert cluster.saved_seconds(10, 1.0, 1.2) < 0
    assert Cluster(TOPOLOGY).saved_seconds(10, 2.0, 1.0) is None
    config = cluster.configured(iso.Config(policy="static"))
    assert (config.step_ms, config.expert_share, config.link_bytes_per_second) == (100, 0.5, 7)
    assert Cluster(TOPOLOGY).configured(config).step_ms == 100
