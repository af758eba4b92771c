"""Rounds of slots to retire and fill, carried out on a model."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import isotherm as iso
from isotherm.planner import PlanRequest, balanced_shares, make_plan
from isotherm.planner.order.round_kernels import even_peaks
from isotherm.planner.order.rounds import order_rounds, transient_imbalance


@st.composite
def ways(draw):
    """(request with a current placement, goal): layers with redundant slots, some of them empty."""
    topology = iso.Topology(2 * draw(st.integers(1, 3)), draw(st.integers(1, 4)), nodes=2)
    experts, layers = draw(st.integers(1, topology.slots - 1)), draw(st.integers(1, 3))

    def placement(empty):
        filler = st.integers(-1 if empty else 0, experts - 1)
        extra = st.lists(filler, min_size=topology.slots - experts, max_size=topology.slots - experts)
        return iso.Placement(
            [draw(st.permutations([*range(experts), *draw(extra)])) for _ in range(layers)], experts
        )

    heat = np.random.default_rng(draw(st.integers(0, 2**32))).random((layers, experts))
    limit = draw(st.integers(1, 5))
    request = PlanRequest(heat, topology, placement(draw(st.booleans())), slots_per_round=limit)
    return request, placement(False)


def carry_out(request, rounds):
    """Yields the contents while each round's slots are retired; at last, what is there in the end."""
    content_LP = request.current.slot_to_expert.copy()
    for refills in rounds:
        assert 0 < len(refills) <= request.slots_per_round
        assert len({(refill.layer, refill.slot) for refill in refills}) == len(refills)
        for refill in refills:
            content_LP[refill.layer, refill.slot] = iso.EMPTY
        yield content_LP.copy()
        for refill in refills:
            assert content_LP[refill.layer, refill.source] == refill.expert  # live: not retired itself
        for refill in refills:
            content_LP[refill.layer, refill.slot] = refill.expert
    yield content_LP


@settings(max_examples=300, deadline=None)
@given(ways())
def test_every_expert_keeps_a_live_replica_on_the_way_to_any_goal(way):
    request, goal = way
    *on_the_way, end_LP = carry_out(request, order_rounds(request, goal))
    for content_LP in on_the_way:
        iso.Placement(content_LP, request.experts)  # refuses an expert without a slot
    assert (end_LP == goal.slot_to_expert).all()


def test_few_detours():
    """Only cycles ask for them: each at most one."""
    rng = np.random.default_rng(0)
    detours = 0
    for _ in range(60):
        topology = iso.Topology(int(rng.integers(2, 7)), int(rng.integers(1, 5)))
        experts = int(rng.integers(1, topology.slots))
        row = np.concatenate([np.arange(experts), rng.integers(0, experts, topology.slots - experts)])
        current, goal = (iso.Placement(rng.permutation(row)[None], experts) for _ in range(2))
        request = PlanRequest(np.ones((1, experts)), topology, current, slots_per_round=4)
        moves = int((current.slot_to_expert != goal.slot_to_expert).sum())
        refills = len(order_rounds(request, goal).refills_N5)
        assert moves <= refills <= moves + 2 * (moves // 2)
        detours += refills - moves
    assert 0 < detours < 40


def test_a_swap_travels_through_the_slot_that_is_missed_least():
    topology = iso.Topology(ranks=3, slots_per_rank=2)
    request = PlanRequest([[9.0, 1.0, 5.0, 5.0]], topology, iso.Placement([[0, 1, 2, 3, 0, 1]], 4))
    goal = iso.Placement([[0, 1, 3, 2, 0, 1]], 4)
    rounds = list(order_rounds(request, goal))
    assert [len(refills) for refills in rounds] == [1, 1, 1, 1]
    assert [(refill.slot, refill.expert) for (refill,) in rounds] == [(1, 2), (2, 3), (3, 2), (1, 1)]


def test_sources_are_near_and_layers_take_turns():
    topology = iso.Topology(ranks=4, slots_per_rank=2, nodes=2)
    row, goal_row = [0, 1, 2, 0, 1, 0, 1, 0], [0, 1, 2, 2, 1, 2, 2, 0]
    request = PlanRequest(np.ones((3, 3)), topology, iso.Placement([row] * 3, 3), slots_per_round=3)
    rounds = list(order_rounds(request, iso.Placement([goal_row] * 3, 3)))
    assert [[refill.layer for refill in refills] for refills in rounds] == [[0, 1, 2]] * 3
    sources = {refill.slot: refill.source for refills in rounds for refill in refills}
    assert sources == {3: 2, 5: 2, 6: 5}  # its own rank; another node, where there is none nearer; its node


def test_layers_that_gain_most_of_a_move_come_first():
    topology = iso.Topology(ranks=2, slots_per_rank=3)
    current, goal_row = iso.Placement([[0, 1, 2, 3, 2, 3]] * 3, 4), [0, 2, 3, 1, 2, 3]
    heat = np.array([[5.0, 5, 1, 1], [90, 90, 1, 1], [30, 30, 1, 1]])
    request = PlanRequest(heat, topology, current, slots_per_round=1)
    rounds = order_rounds(request, iso.Placement([goal_row] * 3, 4))
    layers = [refill.layer for refills in rounds for refill in refills]
    assert list(dict.fromkeys(layers)) == [1, 2, 0]


def test_what_the_step_word_must_carry():
    heat = np.array([[1.0, 2, 3, 4], [4, 3, 2, 1]])
    tight = iso.Topology(ranks=2, slots_per_rank=2)
    swapped = iso.plan(heat, tight, [[0, 1, 2, 3], [3, 2, 1, 0]], max_imbalance=1.0)
    assert (len(swapped.rounds), swapped.step_word_layers) == (0, (0, 1))
    roomy = iso.Topology(ranks=2, slots_per_rank=3)
    current = iso.Placement([[0, 1, 0, 2, 3, 1]] * 2, 4)
    request = PlanRequest(heat, roomy, current, max_imbalance=1.0, dispatch="replicated")
    replicated = make_plan(request, policy="deepseek")
    assert (len(replicated.rounds), replicated.step_word_layers) == (0, (0, 1))
    sent = iso.plan(heat, roomy, current, policy="deepseek", max_imbalance=1.0)
    assert (len(sent.rounds) > 0, sent.step_word_layers) == (True, ())


def test_the_imbalance_while_slots_are_retired():
    rng = np.random.default_rng(2)
    heat, topology = rng.lognormal(0, 1, (4, 24)), iso.Topology(ranks=4, slots_per_rank=8)
    current = iso.plan(heat, topology).placement
    request = PlanRequest(heat[:, ::-1], topology, current, slots_per_round=3)
    plan = make_plan(request)
    *on_the_way, end_LP = carry_out(request, plan.rounds)
    assert on_the_way
    assert (end_LP == plan.placement.slot_to_expert).all()
    for content_LP, found in zip(on_the_way, transient_imbalance(request, plan), strict=True):
        placement = iso.Placement(content_LP, 24)
        shares_LP = balanced_shares(request.heat_LE, placement, topology)
        load_LG = iso.placement.rank_loads(request.heat_LE, placement, shares_LP, topology)
        assert found == iso.overall_imbalance(load_LG)
    with pytest.raises(ValueError, match="current=None: nothing moves"):
        transient_imbalance(PlanRequest(heat, topology), plan)


def test_rounds_survive_the_way_to_other_ranks():
    heat, topology = np.random.default_rng(2).random((2, 6)), iso.Topology(ranks=2, slots_per_rank=4)
    plan = iso.plan(heat, topology, [[0, 1, 2, 3, 4, 5, 0, 1]] * 2, policy="deepseek")
    back = iso.Plan.from_bytes(plan.to_bytes())
    assert list(back.rounds) == list(plan.rounds) != []
    assert back.to_bytes() == plan.to_bytes()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"dispatch": "both"}, "dispatch='both' is unknown: choose 'sender' or 'replicated'"),
        ({"slots_per_round": 0}, "slots_per_round=0 is below 1"),
    ],
)
def test_bad_input_names_value_and_rule(bad, message):
    with pytest.raises(ValueError, match=message):
        PlanRequest(np.ones((1, 2)), iso.Topology(ranks=1, slots_per_rank=2), **bad)


def test_peaks_of_even_shares_are_those_of_the_loads():
    rng = np.random.default_rng(0)
    topology, heat_LE = iso.Topology(ranks=3, slots_per_rank=4), rng.lognormal(0, 1, (5, 6))
    slot_LP = rng.permuted(np.tile(np.append(np.arange(6), [0, 0, 3, 5, -1, -1]), (5, 1)), axis=1)
    placement = iso.Placement(slot_LP, 6)
    load_LG = iso.placement.rank_loads(heat_LE, placement, placement.even_shares(), topology)
    assert even_peaks(slot_LP, heat_LE, 3) == pytest.approx(load_LG.max(axis=1))
