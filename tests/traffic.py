"""Windows of synthetic traffic, and the mind run over them."""

from dataclasses import replace
from itertools import pairwise

import numpy as np

import isotherm as iso
from isotherm.decide import State, make_decision

LAYERS, EXPERTS = 6, 32
TOPOLOGY = iso.Topology.for_model(experts=EXPERTS, redundant=8, ranks=8)
SCATTER = 8
EFFECTIVE = 500
"""Independent choices per step and layer: a step has `SCATTER` times as many tokens, which choose alike."""


def skewed(seed):
    """Parts of the tokens, [layers, experts]: log-normal, as measured on public models."""
    heat_LE = np.random.default_rng(seed).lognormal(0, 0.6, (LAYERS, EXPERTS))
    return heat_LE / heat_LE.sum(axis=1, keepdims=True)


def drawn(rng, part_LE, start, steps, *, slices=2, kinds=1):
    """A window of ``steps`` steps in which tokens choose by ``part_LE``."""
    borders = [start + steps * i // slices for i in range(slices + 1)]
    heat_SLE = np.array(
        [[rng.multinomial(EFFECTIVE * (b - a), row) for row in part_LE] for a, b in pairwise(borders)]
    )
    heat_KSLE = np.zeros((kinds, *heat_SLE.shape), np.int64)
    heat_KSLE[-1] = SCATTER * heat_SLE
    return iso.HeatWindow(heat_KSLE, None, tuple(borders), np.ones(kinds, int), tuple(range(LAYERS)))


def planned_for(part_LE, *, bytes_per_expert=0, **config):
    """The state of a balancer whose placement fits this traffic."""
    plan = iso.plan(part_LE, TOPOLOGY)
    return State(
        TOPOLOGY,
        iso.Config(mode="full", **config),
        plan.placement,
        plan.shares,
        settled=True,
        movable=True,
        bytes_per_expert=bytes_per_expert,
    )


def run_mind(state, windows):
    """The last state and all decisions, each carried out at once."""
    decisions = []
    for window in windows:
        state, decision = make_decision(state, window, window.end_step)
        if decision.plan is not None:
            state = replace(state, placement=decision.plan.placement, shares=decision.plan.shares)
        decisions.append(decision)
    return state, decisions
