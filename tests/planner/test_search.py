"""The search: no move that the target does not need, gains as rated, trees where slots are few."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import isotherm as iso
from isotherm.planner.forest_kernels import plant
from isotherm.planner.layer import new_layer
from isotherm.planner.load_kernels import make_layer, settle
from isotherm.planner.rate_kernels import Aim, excess, rate_replacements, rate_shared_swaps, rate_swaps
from isotherm.planner.search_kernels import change_slots, prune


def drawn_layer(seed, balanced=True):
    rng = np.random.default_rng(seed)
    ranks, size = int(rng.integers(2, 7)), int(rng.integers(2, 5))
    experts = int(rng.integers(size, ranks * size))
    expert_P = rng.permutation(
        np.append(np.arange(experts), rng.integers(-1, experts, ranks * size - experts))
    )
    heat_E = rng.lognormal(0, 1.2, experts)
    return make_layer(expert_P, heat_E / heat_E.sum() * ranks, ranks, balanced), ranks


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.booleans())
def test_a_change_settles_as_if_made_from_the_start(seed, balanced):
    layer, ranks = drawn_layer(seed, balanced)
    rng = np.random.default_rng(seed)
    replicas_E = np.diff(layer.start_E1)
    slot = int(rng.integers(len(layer.slot_expert_P)))
    old = layer.slot_expert_P[slot]
    if old >= 0 and replicas_E[old] < 2:
        return
    change_slots(layer, np.array([slot, int(rng.integers(len(replicas_E))), -1, -1]))
    fresh = make_layer(layer.slot_expert_P, layer.heat_E, ranks, balanced)
    assert layer.load_G == pytest.approx(fresh.load_G, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["balanced", "even"]))
def test_rated_gains_are_those_of_even_shares_and_never_more_than_balanced_ones_reach(seed, shares):
    layer, ranks = drawn_layer(seed, shares == "balanced")
    aim = Aim(1.03, 1.0)
    score_K, change_K4 = np.full(20, -np.inf), np.full((20, 4), -1)
    rate_replacements(layer, aim, score_K, change_K4)
    replacements = int((change_K4[:, 0] >= 0).sum())
    if replacements < len(score_K):
        rate_swaps(layer, aim, score_K, change_K4)
        rate_shared_swaps(layer, aim, score_K, change_K4)
    for score, change in zip(score_K, change_K4, strict=True):
        if change[0] < 0:
            continue
        expert_P = layer.slot_expert_P.copy()
        expert_P[change[0]] = change[1]
        if change[2] >= 0:
            expert_P[change[2]] = change[3]
            score *= 2
        gain = excess(layer.load_G, aim) - excess(
            make_layer(expert_P, layer.heat_E, ranks, layer.balanced).load_G, aim
        )
        if shares == "even":
            assert score == pytest.approx(gain, abs=1e-9)
        else:
            assert score <= gain + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_moves_that_the_target_does_not_need_are_taken_back(seed):
    rng = np.random.default_rng(seed)
    heat_E = rng.lognormal(0, 0.8, 24)
    topology = iso.Topology(ranks=8, slots_per_rank=4)
    start_P = iso.plan(heat_E[None], topology).placement.slot_to_expert[0].astype(np.int64)
    layer = make_layer(start_P, heat_E / heat_E.sum() * 8, 8, True)
    target = layer.load_G.max() + 1e-9
    for slot in rng.permutation(32)[:6]:  # slots that are free to change, changed by chance
        old, new = layer.slot_expert_P[slot], int(rng.integers(24))
        if (layer.slot_expert_P == old).sum() > 1 and new not in rank_of(layer, slot):
            change_slots(layer, np.array([slot, new, -1, -1]))
    target = max(target, float(layer.load_G.max()))
    prune(layer, new_layer(start_P, layer.heat_E, 8, True), start_P, target)
    assert layer.load_G.max() <= target
    for slot in np.flatnonzero(layer.slot_expert_P != start_P):
        back_P = layer.slot_expert_P.copy()
        back_P[slot] = start_P[slot]
        if start_P[slot] not in rank_of(layer, slot) and set(back_P.tolist()) == set(range(24)):
            assert make_layer(back_P, layer.heat_E, 8, True).load_G.max() > target - 1e-9


def rank_of(layer, slot):
    """The experts on the slot's rank."""
    first = slot // layer.slots_per_rank * layer.slots_per_rank
    return layer.slot_expert_P[first : first + layer.slots_per_rank]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_planted_trees_hold_every_expert_and_none_twice_on_a_rank(seed):
    rng = np.random.default_rng(seed)
    ranks = int(rng.integers(2, 20))
    experts = int(rng.integers(ranks + 1, 2 * ranks + 1))
    heat_E = rng.lognormal(0, rng.uniform(0, 2), experts)
    expert_GS = plant(heat_E / heat_E.sum() * ranks, ranks).reshape(ranks, 2)
    assert set(expert_GS.ravel().tolist()) == set(range(experts))
    assert (expert_GS[:, 0] != expert_GS[:, 1]).all()
    parts = list(range(experts))
    for one, other in expert_GS.tolist():  # each rank joins two trees, so none closes a circle
        before, after = parts[one], parts[other]
        assert before != after
        parts = [after if part == before else part for part in parts]
    assert len(set(parts)) == experts - ranks


def test_two_slots_a_rank_are_balanced_far_better_by_trees_than_by_counts():
    heat = np.random.default_rng(3).lognormal(0, 0.6, (4, 64))
    topology = iso.Topology(ranks=36, slots_per_rank=2)
    plan = iso.plan(heat, topology)
    packed = iso.plan(heat, topology, policy="deepseek")
    assert (1 / plan.imbalance).mean() > (1 / packed.imbalance).mean() + 0.03


def test_settling_again_changes_nothing():
    layer, _ = drawn_layer(5)
    before = layer.load_G.copy()
    settle(layer)
    assert layer.load_G == pytest.approx(before, abs=1e-12)
