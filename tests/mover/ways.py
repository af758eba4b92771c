"""Random placements, and the rounds from one to another."""

import numpy as np

from isotherm.placement import Placement, expert_sums
from isotherm.planner import PlanRequest
from isotherm.planner.order.rounds import order_rounds


def random_placement(rng, layers, experts, slots):
    rows = [
        rng.permutation(np.r_[np.arange(experts), rng.integers(0, experts, slots - experts)])
        for _ in range(layers)
    ]
    return Placement(np.array(rows, np.int32), experts)


def random_shares(rng, placement):
    raw = rng.random(placement.slot_to_expert.shape) + 1e-3
    sums = expert_sums(placement, raw)
    return raw / np.take_along_axis(sums, placement.slot_to_expert.astype(int), 1)


def rounds_between(start, goal, topology, limit):
    """The planner's, for heat that is the same everywhere."""
    heat = np.ones((start.layers, start.experts))
    return order_rounds(PlanRequest(heat, topology, start, slots_per_round=limit), goal)
