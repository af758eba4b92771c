"""Placements from nothing: counts, pairs and trades against brute force; what joined ranks are good for."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import isotherm as iso
from isotherm.planner import imbalance_bound
from isotherm.planner.fresh.forest_kernels import plant_one
from isotherm.planner.fresh.join_kernels import join_ranks
from isotherm.planner.fresh.pack_kernels import list_replicas, pack, separate
from isotherm.planner.fresh.pair_kernels import pair
from isotherm.planner.fresh.trade_kernels import rank_sums, trade
from isotherm.planner.layers.load_kernels import make_layer

SEEDS = st.integers(0, 2**32)


def list_plainly(heat_E, slots, most):
    listed = list(range(len(heat_E)))
    while len(listed) < slots:
        counts = [listed.count(e) for e in range(len(heat_E))]
        listed.append(
            max(
                (e for e in range(len(heat_E)) if counts[e] < most), key=lambda e: (heat_E[e] / counts[e], -e)
            )
        )
    return listed


def pack_plainly(weight_N, packs):
    size, inside = len(weight_N) // packs, [[] for _ in range(packs)]
    for item in np.argsort(-weight_N, kind="stable"):
        free = [p for p in range(packs) if len(inside[p]) < size]
        inside[min(free, key=lambda p: (sum(weight_N[i] for i in inside[p]), p))].append(int(item))
    return inside


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_replicas_are_listed_and_packed_as_published(seed):
    rng = np.random.default_rng(seed)
    experts, packs = int(rng.integers(1, 12)), int(rng.integers(2, 6))
    heat_E = rng.choice([0.0, 1.0, 2.0, 5.5, 40.0], experts)  # with equals
    slots = packs * int(rng.integers(-(-experts // packs), experts + 1))
    assert list_replicas(heat_E, slots, packs).tolist() == list_plainly(heat_E, slots, packs)
    weight_N = rng.choice([0.0, 1.0, 2.0, 5.5], slots)
    assert pack(weight_N, packs).tolist() == pack_plainly(weight_N, packs)


@settings(max_examples=150, deadline=None)
@given(SEEDS)
@example(25)  # single trades alone leave one twice
def test_no_expert_is_left_twice_on_a_rank(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 9))
    experts, ranks = int(rng.integers(size, 33)), int(rng.integers(2, 17))
    heat_E = np.where(rng.random(experts) < rng.choice([0.1, 1.0]), rng.random(experts), 0.0)
    replica_P = list_replicas(heat_E, ranks * size, ranks) if experts <= ranks * size else np.empty(0, int)
    if len(replica_P) == 0:
        return
    weight_E = heat_E / np.bincount(replica_P, minlength=experts)
    expert_GS = replica_P[pack(weight_E[replica_P], ranks)]
    separate(expert_GS, weight_E)
    assert np.sort(expert_GS.ravel()).tolist() == sorted(replica_P.tolist())
    assert all(len(set(rank)) == size for rank in expert_GS.tolist())


def lowest_pair_peak(heat_E, ranks):
    """The lowest peak of all numbers of replicas, each with its heaviest beside its lightest."""
    peaks = []
    for count_E in itertools.product(range(1, ranks + 1), repeat=len(heat_E)):
        if sum(count_E) == 2 * ranks:
            weight_P = np.sort(np.repeat(heat_E / np.array(count_E), count_E))
            peaks.append((weight_P[:ranks] + weight_P[::-1][:ranks]).max())
    return min(peaks)


def even_peak(slot_expert_P, heat_E, ranks):
    weight_E = heat_E / np.bincount(slot_expert_P, minlength=len(heat_E))
    return weight_E[slot_expert_P].reshape(ranks, -1).sum(axis=1).max()


def test_pairs_are_never_better_than_the_best_counts_and_mostly_as_good():
    gaps = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        ranks = int(rng.integers(3, 6))
        experts = int(rng.integers(ranks - 1, 6))
        heat_E = rng.lognormal(0, rng.choice([0.7, 1.5]), experts)
        heat_E *= ranks / heat_E.sum()
        slot_expert_P = pair(heat_E, ranks, 1.0)
        assert np.bincount(slot_expert_P, minlength=experts).min() > 0
        gaps.append(even_peak(slot_expert_P, heat_E, ranks) / lowest_pair_peak(heat_E, ranks) - 1)
    assert min(gaps) > -1e-9
    assert np.mean(gaps) < 0.02
    assert np.mean(np.array(gaps) < 1e-9) > 0.6


def test_the_small_fixture_is_at_its_optimum_with_even_shares():
    heat = np.array([[600.0, 560, 120, 120, 20, 10, 10, 10]])
    plan = iso.plan(heat, iso.Topology(ranks=8, slots_per_rank=2), shares="even")
    assert plan.imbalance[0] * heat.sum() / 8 == pytest.approx(590 / 3)


def drawn_slots(seed, most_size=5):
    rng = np.random.default_rng(seed)
    ranks, size = int(rng.integers(2, 9)), int(rng.integers(2, most_size + 1))
    experts = int(rng.integers(size, ranks * size + 1))
    heat_E = np.round(rng.lognormal(0, rng.choice([0.3, 1.0, 2.0]), experts), 1)
    replica_P = list_replicas(heat_E, ranks * size, ranks)
    count_E = np.bincount(replica_P, minlength=experts)
    expert_GS = replica_P[pack((heat_E / count_E)[replica_P], ranks)]
    separate(expert_GS, heat_E / count_E)
    return expert_GS, heat_E / count_E, count_E


def check_same_slots(before_GS, after_GS):
    assert np.sort(before_GS.ravel()).tolist() == np.sort(after_GS.ravel()).tolist()
    twice = [sum(len(rank) - len(set(rank)) for rank in each.tolist()) for each in (before_GS, after_GS)]
    assert twice[1] <= twice[0]


@settings(max_examples=80, deadline=None)
@given(SEEDS)
@example(821)  # all ranks at one load but for rounding: trades that gain nothing would go on for ever
def test_trades_end_where_no_single_one_cools_the_hottest_rank_much(seed):
    expert_GS, weight_E, count_E = drawn_slots(seed)
    before_GS, most = expert_GS.copy(), seed % 3 + 1
    trade(expert_GS, weight_E, count_E, most)
    check_same_slots(before_GS, expert_GS)
    kept_GS = count_E[before_GS] > most
    assert (before_GS[kept_GS] == expert_GS[kept_GS]).all()
    load_G = rank_sums(expert_GS, weight_E)
    assert load_G.max() <= rank_sums(before_GS, weight_E).max() + 1e-12
    hottest = np.flatnonzero(load_G > load_G.max() - 1e-9)
    gain = min(most_gained(expert_GS, weight_E, count_E <= most, load_G, hot) for hot in hottest)
    assert gain <= 1e-4 * (load_G.max() - load_G.mean()) + 1e-8


def most_gained(expert_GS, weight_E, free_E, load_G, hot):
    """By one trade of the rank, off the hotter of the two."""
    gains = [0.0]
    for slot, (rank, place) in itertools.product(range(expert_GS.shape[1]), np.ndindex(expert_GS.shape)):
        given, taken = expert_GS[hot, slot], expert_GS[rank, place]
        if free_E[given] and free_E[taken] and given not in expert_GS[rank] and taken not in expert_GS[hot]:
            moved = weight_E[given] - weight_E[taken]
            gains.append(min(moved, load_G[hot] - load_G[rank] - moved))
    return max(gains)


def number_of_parts(expert_GS, weight_E):
    """How many parts the ranks fall into that share no expert with weight."""
    part_G = list(range(len(expert_GS)))
    for expert in np.flatnonzero(weight_E > 0):
        joined = {part_G[rank] for rank in np.flatnonzero((expert_GS == expert).any(axis=1))}
        part_G = [min(joined) if part in joined else part for part in part_G]
    return len(set(part_G))


@settings(max_examples=80, deadline=None)
@given(SEEDS)
def test_joining_parts_nothing_and_comes_as_far_as_there_are_slots_to_trade(seed):
    expert_GS, weight_E, count_E = drawn_slots(seed)
    joined_GS, parts = expert_GS.copy(), number_of_parts(expert_GS, weight_E)
    join_ranks(joined_GS.ravel(), expert_GS.shape[1], weight_E, np.array([1e-9, weight_E.max()]))
    check_same_slots(expert_GS, joined_GS)
    after = number_of_parts(joined_GS, weight_E)
    # Of the slots that carry something, each but one joined a part.
    edges = count_E[(count_E > 1) & (weight_E > 0)]
    spare = int((edges - 1).sum()) - (len(expert_GS) - parts)
    rows = [row for row in joined_GS if (count_E[row] == 1).any()]
    assert after >= max(1, parts - spare)
    if len(rows) == len(joined_GS):  # every rank has an expert to give
        assert after == max(1, parts - spare)


def skewed(kind, layers=3, experts=64):
    rng = np.random.default_rng(1)
    heat = rng.lognormal(0, 0.8, (layers, experts))
    if kind == "zipf":
        heat = rng.permuted(np.tile(1 / np.arange(1.0, experts + 1), (layers, 1)), axis=1)
    elif kind == "half":
        heat[:, 7] = heat.sum(axis=1) - heat[:, 7]
    elif kind == "zeros":
        heat[rng.random(heat.shape) < 0.7] = 0
    return heat


@pytest.mark.parametrize("kind", ["drawn", "zipf", "half", "zeros"])
@pytest.mark.parametrize(("ranks", "size"), [(8, 9), (16, 5), (32, 3), (64, 2)])
def test_exact_shares_are_at_the_bound_where_there_are_slots_to_spare(kind, ranks, size):
    plan = iso.plan(skewed(kind), iso.Topology(ranks=ranks, slots_per_rank=size))
    assert plan.imbalance == pytest.approx(plan.bound, rel=1e-3)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_one_tree_of_all_but_cold_experts_balances_whatever_heat_they_have(seed):
    rng = np.random.default_rng(seed)
    ranks, size = int(rng.integers(2, 12)), int(rng.integers(2, 5))
    hot = rng.lognormal(0, rng.uniform(0, 2), int(rng.integers(2, ranks + 1)))
    heat_E = rng.permutation(np.append(hot, hot.min() * 0.01 * rng.random(ranks * (size - 2))))
    heat_E *= ranks / heat_E.sum()
    slot_expert_P = plant_one(heat_E, ranks, size)
    assert set(slot_expert_P.tolist()) == set(range(len(heat_E)))
    assert all(len(set(rank)) == size for rank in slot_expert_P.reshape(ranks, size).tolist())
    assert make_layer(slot_expert_P, heat_E, ranks, True).rank_G["load"] == pytest.approx(np.ones(ranks))


@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_noise_moves_nothing_and_shares_alone_make_up_for_it(sigma):
    heat = np.random.default_rng(2).lognormal(0, 0.7, (4, 128))
    topology = iso.Topology.for_model(experts=128, redundant=16, ranks=16)
    current = iso.plan(heat, topology).placement
    for seed in range(20):
        noise = np.random.default_rng(seed).lognormal(0, sigma, heat.shape)
        plan = iso.plan(heat * noise, topology, current)
        assert plan.moves == ()
        assert (1 / plan.imbalance).min() > 0.985


def test_even_shares_lose_nothing_by_ranks_that_are_joined():
    heat = np.random.default_rng(2).lognormal(0, 0.7, (4, 128))
    topology = iso.Topology.for_model(experts=128, redundant=16, ranks=16)
    plan = iso.plan(heat, topology, shares="even")
    assert (1 / plan.imbalance).min() > 0.999
    for row_P, heat_E in zip(plan.placement.slot_to_expert, heat, strict=True):
        assert number_of_parts(row_P.reshape(16, -1), heat_E) == 1


def test_two_slots_a_rank_come_near_their_bound():
    heat = np.random.default_rng(3).lognormal(0, 0.6, (4, 64))
    topology = iso.Topology(ranks=36, slots_per_rank=2)
    bound_L = imbalance_bound(heat, topology)
    even, exact = (iso.plan(heat, topology, shares=shares).imbalance for shares in ("even", "balanced"))
    assert (even / bound_L).mean() < 1.04
    assert (exact / bound_L).mean() < 1.03
