"""Shares and placements that keep pairs on their node, beside a linear program and all placements."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import isotherm as iso
from isotherm.bench.plan_heat import draw_heat
from isotherm.placement import check_shares, rank_loads
from isotherm.planner import PlanRequest, balanced_shares, imbalance_bound, make_plan
from isotherm.planner.locality.crossing import crossing_bound, crossing_pairs
from isotherm.planner.locality.rank_kernels import trade_ranks
from isotherm.planner.locality.shares import near_shares


def fewest_crossing(source_NE, expert_P, ranks, peak):
    """Pairs that cross at least with no rank above ``peak``, by HiGHS: tokens from each node to each slot."""
    nodes, experts = source_NE.shape
    size, per_node = len(expert_P) // ranks, len(expert_P) // nodes
    flows = list(itertools.product(range(nodes), range(len(expert_P))))
    cost = [float(slot // per_node != node) for node, slot in flows]
    sent = [
        [float(node == n and expert_P[slot] == e) for node, slot in flows]
        for n, e in itertools.product(range(nodes), range(experts))
    ]
    carried = [[float(slot // size == rank) for _, slot in flows] for rank in range(ranks)]
    solved = linprog(cost, carried, [peak] * ranks, sent, source_NE.ravel(), method="highs")
    assert solved.success, solved.message
    return solved.fun


def lowest_peak(heat_LE, placement, topology):
    shares_LP = balanced_shares(heat_LE, placement, topology)
    return rank_loads(heat_LE, placement, shares_LP, topology).max(axis=1)


def crossing(source_NLE, placement, shares_LP, topology):
    return crossing_pairs(source_NLE, placement, shares_LP, topology, prefers_near=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.01, 0.1, 0.3]))
def test_no_shares_within_the_slack_let_fewer_pairs_cross(seed, slack):
    rng = np.random.default_rng(seed)
    nodes, per_node, size = rng.integers(1, 4, 3)
    topology = iso.Topology(ranks=int(nodes * per_node), slots_per_rank=int(size), nodes=int(nodes))
    experts = int(rng.integers(1, topology.slots + 1))
    expert_P = rng.permutation(
        np.append(np.arange(experts), rng.integers(0, experts, topology.slots - experts))
    )
    source = rng.lognormal(0, 1, (nodes, 1, experts)) * (rng.random((nodes, 1, experts)) > 0.2)
    source[0, 0, 0] += 1
    placement, heat = iso.Placement(expert_P[None], experts), source.sum(axis=0)
    shares = near_shares(source, placement, topology, slack)
    check_shares(placement, shares)
    mean = heat.sum() / topology.ranks
    balance = max(1 / imbalance_bound(heat, topology)[0] - slack, 1 / topology.ranks)
    peak = max(lowest_peak(heat, placement, topology)[0], mean / balance)
    assert rank_loads(heat, placement, shares, topology).max() <= peak * (1 + 1e-6)
    best = fewest_crossing(source[:, 0], expert_P, topology.ranks, peak * (1 + 1e-9))
    assert crossing(source, placement, shares, topology)[0] == pytest.approx(best, abs=1e-6 * heat.sum())


def test_experts_without_heat_are_split_evenly():
    placement = iso.Placement([[0, 1, 1, 2], [0, 1, 1, 2]], 3)
    topology = iso.Topology(ranks=2, slots_per_rank=2, nodes=2)
    source = np.array([[[1.0, 0, 3], [0, 0, 0]], [[2.0, 0, 1], [0, 0, 0]]])
    assert near_shares(source, placement, topology, 0.01).tolist() == [[1, 0.5, 0.5, 1]] * 2


def drawn_sources(nodes, alike, layers=4, experts=64):
    """Heat of nodes that serve the same traffic, or two kinds of it in turn."""
    first = draw_heat(layers, experts)
    if alike:
        return np.stack([first / nodes] * nodes)
    second = first * np.exp(np.random.default_rng(2).normal(0, 0.5, first.shape))
    second *= first.sum(axis=1, keepdims=True) / second.sum(axis=1, keepdims=True)
    return np.stack([(first, second)[node % 2] / nodes for node in range(nodes)])


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("nodes", [2, 4])
def test_most_of_what_the_bound_allows_is_cut_for_a_hundredth_of_balancedness(nodes, alike):
    topology = iso.Topology.for_model(experts=64, redundant=8, ranks=8, nodes=nodes)
    source = drawn_sources(nodes, alike)
    heat = source.sum(axis=0)
    plain = iso.plan(heat, topology)
    near = iso.plan(heat, topology, source_heat=source, locality_slack=0.01)
    blind = crossing_pairs(source, plain.placement, plain.shares, topology, prefers_near=False).sum()
    found = crossing(source, near.placement, near.shares, topology).sum()
    assert blind - found >= 0.8 * (blind - crossing_bound(source, topology).sum())
    assert (1 / near.imbalance >= 1 / plain.imbalance - 0.01 - 1e-6).all()


def test_nothing_is_known_of_sources_and_each_node_is_taken_to_send_as_much():
    topology = iso.Topology.for_model(experts=64, redundant=8, ranks=8, nodes=2)
    source = drawn_sources(2, True)
    told = iso.plan(source.sum(axis=0), topology, source_heat=source, locality_slack=0.01)
    assert iso.plan(source.sum(axis=0), topology, locality_slack=0.01).to_bytes() == told.to_bytes()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
def test_tiny_layers_against_every_placement(seed):
    """Four experts on two nodes of one rank with three slots."""
    rng = np.random.default_rng(seed)
    topology = iso.Topology(ranks=2, slots_per_rank=3, nodes=2)
    source = rng.lognormal(0, 1, (2, 1, 4))
    heat = source.sum(axis=0)
    plain = iso.plan(heat, topology)
    near = iso.plan(heat, topology, source_heat=source, locality_slack=0.1)
    mean = heat.sum() / 2
    peak = max(mean * plain.imbalance[0], mean / (1 / plain.bound[0] - 0.1)) * (1 + 1e-6)
    best = np.inf
    for row in itertools.product(itertools.combinations(range(4), 3), repeat=2):
        expert_P = np.concatenate(row)
        placement = iso.Placement(expert_P[None], 4) if len(set(expert_P)) == 4 else None
        if placement is not None and lowest_peak(heat, placement, topology)[0] <= peak:
            best = min(best, fewest_crossing(source[:, 0], expert_P, 2, peak))
    found = crossing(source, near.placement, near.shares, topology)[0]
    before = crossing(source, plain.placement, near_shares(source, plain.placement, topology, 0.1), topology)
    assert best - 1e-6 * heat.sum() <= found <= before[0] + 1e-6 * heat.sum()
    assert rank_loads(heat, near.placement, near.shares, topology).max() <= peak


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_ranks_trade_nodes_until_no_trade_helps(seed):
    rng = np.random.default_rng(seed)
    source_NE = rng.lognormal(0, 1, (2, 8))
    expert_GS = rng.permutation(np.append(np.arange(8), rng.integers(0, 8, 4))).reshape(4, 3)
    assume(all(len(set(rank)) == 3 for rank in expert_GS.tolist()))

    def near(expert_GS):
        held = [np.isin(np.arange(8), node) for node in expert_GS.reshape(2, 6)]
        return float((source_NE * held).sum())

    traded_GS = expert_GS.copy()
    trade_ranks(traded_GS.ravel(), source_NE, 4)
    assert sorted(traded_GS.tolist()) == sorted(expert_GS.tolist())
    assert near(traded_GS) >= near(expert_GS)
    for rank, other in itertools.product((0, 1), (2, 3)):
        order = np.arange(4)
        order[[rank, other]] = other, rank
        assert near(traded_GS[order]) <= near(traded_GS) + 1e-6


def test_two_slots_a_rank_give_up_no_balance_and_spare_pairs():
    topology = iso.Topology.for_model(experts=64, redundant=16, ranks=40, nodes=4)
    source = drawn_sources(4, True, layers=2)
    heat = source.sum(axis=0)
    plain = iso.plan(heat, topology)
    near = iso.plan(heat, topology, source_heat=source, locality_slack=0.0)
    blind = crossing_pairs(source, plain.placement, plain.shares, topology, prefers_near=False).sum()
    found = crossing(source, near.placement, near.shares, topology).sum()
    assert blind - found >= 0.3 * (blind - crossing_bound(source, topology).sum())
    assert near.imbalance == pytest.approx(plain.imbalance, rel=1e-5)


@pytest.mark.parametrize("max_moves", [0, 5, 40])
def test_from_what_is_loaded_within_a_budget(max_moves):
    topology = iso.Topology.for_model(experts=64, redundant=8, ranks=8, nodes=2)
    source = drawn_sources(2, False)
    heat = source.sum(axis=0)
    plain = iso.plan(heat, topology)
    near = iso.plan(
        heat, topology, plain.placement, source_heat=source, locality_slack=0.01, max_moves=max_moves
    )
    assert len(near.moves) <= max_moves
    stay = near_shares(source, plain.placement, topology, 0.01)
    before = crossing(source, plain.placement, stay, topology).sum()
    after = crossing(source, near.placement, near.shares, topology).sum()
    assert after < before - 5e-4 * len(near.moves) * heat.sum() / 8 if max_moves else after == before
    assert (1 / near.imbalance >= 1 / plain.imbalance - 0.01 - 1e-6).all()


def test_the_same_plan_on_any_number_of_threads():
    topology = iso.Topology.for_model(experts=64, redundant=8, ranks=8, nodes=2)
    source = drawn_sources(2, False)
    plans = [
        make_plan(
            PlanRequest(
                source.sum(axis=0),
                topology,
                source_heat_NLE=source,
                locality_slack=0.01,
                max_imbalance=1.0,
                threads=threads,
            )
        )
        for threads in (1, 3)
    ]
    assert plans[0].to_bytes() == plans[1].to_bytes()


def test_a_layer_without_heat_and_slots_for_all():
    topology = iso.Topology(ranks=4, slots_per_rank=4, nodes=2)
    heat = np.array([[4.0, 2, 1], [0, 0, 0]])
    near = iso.plan(heat, topology, locality_slack=0.01)
    assert crossing(np.stack([heat / 2] * 2), near.placement, near.shares, topology).tolist() == [0, 0]


WRONG = {
    "locality_slack=1.5 is balancedness": {"locality_slack": 1.5},
    "locality_slack=-0.1 is balancedness": {"locality_slack": -0.1},
    "with shares='even'": {"locality_slack": 0.1, "shares": "even"},
    "with shares='even': near": {"locality_slack": 0.1, "engine": "vllm"},
    "does not add up": {"locality_slack": 0.1, "source_heat": np.ones((2, 1, 4))},
    r"give \(2, 1, 4\) \[nodes": {"source_heat": np.ones((1, 1, 4))},
}


@pytest.mark.parametrize("message", WRONG)
def test_refusals(message):
    topology = iso.Topology(ranks=2, slots_per_rank=3, nodes=2)
    with pytest.raises(ValueError, match=message):
        iso.plan(np.ones((1, 4)), topology, **WRONG[message])


def test_a_slack_without_sources_is_refused_by_the_planner_itself():
    topology = iso.Topology(ranks=2, slots_per_rank=3, nodes=2)
    with pytest.raises(ValueError, match="without source_heat_NLE"):
        PlanRequest(np.ones((1, 4)), topology, locality_slack=0.01)
