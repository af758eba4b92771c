"""Even shares where redundant slots are on few ranks: an expert of one slot makes room elsewhere."""

import numpy as np
import pytest

import isotherm as iso
from isotherm.planner.layers.layer import read_experts
from isotherm.planner.layers.load_kernels import make_layer
from isotherm.planner.search.even_kernels import Aim, best_relocation, excess, give, hottest_rank

EXPERTS, RANKS, LAYERS = 64, 16, 40
TOPOLOGY = iso.Topology.for_model(experts=EXPERTS, redundant=RANKS, ranks=RANKS)
BUNCHED_P = np.concatenate([np.arange(EXPERTS), np.arange(RANKS)])
"""All redundant slots on the last ranks, as vLLM begins."""
HEAT_LE = np.random.default_rng(0).lognormal(0, 1.0, (LAYERS, EXPERTS))


def test_the_search_leaves_a_placement_whose_redundant_slots_are_on_the_last_ranks():
    start_LP = np.tile(BUNCHED_P, (LAYERS, 1))
    plan = iso.plan(HEAT_LE, TOPOLOGY, start_LP, shares="even", max_imbalance=1.05)
    assert (plan.imbalance <= 1.05).sum() >= LAYERS - 1


def test_a_relocation_gains_what_is_told_and_drops_no_expert():
    found, aim, change_4 = 0, Aim(1.05, 100.0), np.empty(4, np.int64)
    for heat_E in HEAT_LE:
        layer = make_layer(BUNCHED_P, heat_E / heat_E.sum() * RANKS, RANKS, False)
        before, hottest = excess(layer, aim), hottest_rank(layer)
        told = best_relocation(layer, aim, 0.0, change_4)
        if told <= 0:
            continue
        slot, moved, place, expert = change_4.tolist()
        found += 1
        assert expert in layer.slot_P["expert"][layer.slot_P["rank"] == hottest]
        assert layer.slot_P["expert"][place] == moved
        give(layer, slot, -1)
        give(layer, place, expert)
        give(layer, slot, moved)
        assert before - excess(layer, aim) == pytest.approx(2 * told, abs=1e-9)
        expert_P = np.empty(len(BUNCHED_P), np.int64)
        read_experts(layer, expert_P)
        assert set(expert_P.tolist()) == set(range(EXPERTS))
    assert found > LAYERS / 2
