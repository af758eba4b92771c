"""Exact shares against a linear program, and the bound against every placement there is."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

import isotherm as iso
from isotherm.placement import check_shares, rank_loads
from isotherm.planner import balanced_shares, imbalance_bound


def lowest_peak(heat_E, expert_P, ranks):
    """The hottest rank's load under the best shares, by HiGHS: one variable a slot, and the peak."""
    slots = len(expert_P)
    cost = np.append(np.zeros(slots), 1.0)
    upper = np.zeros((ranks, slots + 1))
    for slot in range(slots):
        upper[slot // (slots // ranks), slot] = 1
    upper[:, -1] = -1
    equal = np.array([np.append(expert_P == expert, 0.0) for expert in range(len(heat_E))])
    bounds = [(0, None if expert >= 0 else 0) for expert in expert_P] + [(0, None)]
    solved = linprog(cost, upper, np.zeros(ranks), equal.astype(float), heat_E, bounds, method="highs")
    assert solved.success, solved.message
    return solved.fun


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_no_split_is_better(seed):
    rng = np.random.default_rng(seed)
    ranks, size = int(rng.integers(1, 7)), int(rng.integers(1, 5))
    experts = int(rng.integers(1, ranks * size + 1))
    expert_P = rng.permutation(
        np.append(np.arange(experts), rng.integers(-1, experts, ranks * size - experts))
    )
    heat_E = rng.lognormal(0, 1.5, experts) * (rng.random(experts) > 0.2)
    topology = iso.Topology(ranks=ranks, slots_per_rank=size)
    placement = iso.Placement(expert_P[None], experts)
    shares_LP = balanced_shares(heat_E[None], placement, topology)
    check_shares(placement, shares_LP)
    peak = rank_loads(heat_E[None], placement, shares_LP, topology).max()
    assert peak == pytest.approx(lowest_peak(heat_E, expert_P, ranks), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("reach", [1, 3])
def test_tokens_find_their_way_along_a_chain_of_ranks(reach):
    # Each rank shares experts with the next few; all heat is at one end.
    ranks = 40
    expert_P = np.array([[(rank + i) % ranks for i in range(reach + 1)] for rank in range(ranks)]).ravel()
    heat_E = np.linspace(2.0, 0.0, ranks) ** 3
    topology = iso.Topology(ranks=ranks, slots_per_rank=reach + 1)
    placement = iso.Placement(expert_P[None], ranks)
    shares_LP = balanced_shares(heat_E[None], placement, topology)
    peak = rank_loads(heat_E[None], placement, shares_LP, topology).max()
    assert peak == pytest.approx(lowest_peak(heat_E, expert_P, ranks), rel=1e-9)


@pytest.mark.parametrize("ranks", [16, 64])
def test_no_split_is_better_at_full_size(ranks):
    rng = np.random.default_rng(ranks)
    topology = iso.Topology.for_model(experts=128, redundant=ranks, ranks=ranks)
    placement = iso.plan(rng.lognormal(0, 0.7, (1, 128)), topology).placement
    heat_E = rng.lognormal(0, 0.7, 128)
    shares_LP = balanced_shares(heat_E[None], placement, topology)
    peak = rank_loads(heat_E[None], placement, shares_LP, topology).max()
    assert peak == pytest.approx(lowest_peak(heat_E, placement.slot_to_expert[0], ranks), rel=1e-9)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_no_rank_gets_tokens_that_a_cooler_one_could_take(seed):
    # With that the sum of squared loads, and any other convex measure, is at its minimum.
    rng = np.random.default_rng(seed)
    ranks, size, experts = 8, 4, 20
    expert_P = rng.permutation(
        np.append(np.arange(experts), rng.integers(0, experts, ranks * size - experts))
    )
    heat_E = rng.lognormal(0, 1.5, experts)
    placement, topology = (
        iso.Placement(expert_P[None], experts),
        iso.Topology(ranks=ranks, slots_per_rank=size),
    )
    shares_LP = balanced_shares(heat_E[None], placement, topology)
    load_G = rank_loads(heat_E[None], placement, shares_LP, topology)[0]
    for slot, other in itertools.permutations(range(ranks * size), 2):
        if expert_P[slot] == expert_P[other] and shares_LP[0, slot] > 0:
            assert load_G[slot // size] <= load_G[other // size] + 1e-9 * heat_E.sum()


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**32))
def test_the_bound_is_below_every_placement(seed):
    rng = np.random.default_rng(seed)
    heat_E = rng.lognormal(0, 1.2, 4)
    topology = iso.Topology(ranks=3, slots_per_rank=2)
    best = min(
        lowest_peak(heat_E, np.array(expert_P), 3)
        for expert_P in itertools.product(range(4), repeat=6)
        if len(set(expert_P)) == 4 and all(a < b for a, b in zip(expert_P[::2], expert_P[1::2], strict=True))
    )
    assert imbalance_bound(heat_E[None], topology)[0] <= best / (heat_E.sum() / 3) + 1e-9


def test_the_bound_by_hand():
    # 4 slots for 3 experts: the one redundant slot halves the hottest, 8 to 4; the mean is 6.
    topology = iso.Topology(ranks=2, slots_per_rank=2)
    assert imbalance_bound(np.array([[8.0, 3.0, 1.0], [0.0, 0.0, 0.0]]), topology).tolist() == [1.0, 1.0]
    # No redundant slot: the hottest expert is the bound, 10 over a mean of 6.
    assert imbalance_bound(np.array([[10.0, 2.0]]), iso.Topology(ranks=2, slots_per_rank=1))[0] == 10 / 6
