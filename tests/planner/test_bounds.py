"""Bounds on what any placement could reach, against the best there is."""

import numpy as np
import pytest
from scipy.optimize import LinearConstraint, milp

import isotherm as iso
from isotherm.planner import imbalance_bound


def lowest_imbalance(heat_E, ranks, size):
    """By HiGHS: which ranks hold each expert, and what each of them gets; experts may be on any ranks."""
    experts, cells = len(heat_E), len(heat_E) * ranks
    held, got, peak = (
        np.eye(2 * cells + 1)[:cells],
        np.eye(2 * cells + 1)[cells:-1],
        np.eye(2 * cells + 1)[-1],
    )
    by_rank, by_expert = np.tile(np.eye(ranks), experts), np.repeat(np.eye(experts), ranks, axis=1)
    solved = milp(
        peak,
        integrality=np.arange(2 * cells + 1) < cells,
        bounds=([0] * (2 * cells + 1), [1] * cells + [np.inf] * (cells + 1)),
        constraints=[
            LinearConstraint(by_rank @ held, 0, size),
            LinearConstraint(by_expert @ got, heat_E, heat_E),
            LinearConstraint(got - np.repeat(heat_E, ranks)[:, None] * held, -np.inf, 0),
            LinearConstraint(by_rank @ got - peak, -np.inf, 0),
        ],
    )
    assert solved.status == 0
    return solved.fun / (heat_E.sum() / ranks)


@pytest.mark.parametrize(
    ("size", "experts", "seeds", "reached"), [(2, 4, 12, 12), (2, 5, 12, 4), (3, 6, 6, 6)]
)
def test_no_placement_is_better_and_most_bounds_are_reached(size, experts, seeds, reached):
    gaps, topology = [], iso.Topology(ranks=3, slots_per_rank=size)
    for seed in range(seeds):
        heat_E = np.random.default_rng(seed).lognormal(0, (0.4, 0.8, 1.2, 1.6)[seed % 4], experts)
        bound = imbalance_bound(heat_E[None], topology)[0]
        gaps.append(lowest_imbalance(heat_E, 3, size) / bound - 1)
    assert min(gaps) > -1e-6
    assert sum(gap < 1e-4 for gap in gaps) >= reached


def test_where_cold_experts_lack_the_bound_of_two_slots_is_far_above_that_of_counts():
    # Real layers of 256 experts look like this one: 3 % to 15 % more than mean and slots alone say.
    heat_E = np.random.default_rng(0).lognormal(0, 0.7, 64)
    topology = iso.Topology(ranks=36, slots_per_rank=2)
    mean, hottest = heat_E.sum() / 36, np.sort(heat_E)[::-1]
    replicas_E = np.ones(64)
    for _ in range(8):
        replicas_E[(hottest / replicas_E).argmax()] += 1
    by_counts = max(1, (hottest / replicas_E).max() / mean)
    assert imbalance_bound(heat_E[None], topology)[0] > by_counts * 1.02


def test_bounds_are_of_the_layer_alone_and_of_no_unit():
    heat = np.random.default_rng(0).lognormal(0, 1, (3, 12))
    topology = iso.Topology(ranks=8, slots_per_rank=2)
    together = imbalance_bound(heat, topology)
    assert together == pytest.approx([imbalance_bound(heat[i : i + 1], topology)[0] for i in range(3)])
    assert imbalance_bound(heat * 1e9, topology) == pytest.approx(together)
    assert imbalance_bound(heat[:, ::-1], topology) == pytest.approx(together)
