"""Plans from what is loaded: after a large change, a small one, and none but noise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.plan_cases import measure_plans
from isotherm.bench.plan_heat import Heats
from isotherm.placement import Plan
from isotherm.planner import plan, policies
from isotherm.planner.request import ShareRule
from isotherm.topology import Topology

RANKS = (32, 16)
SEEDS = 20
LARGE = {(32, 0.97): 2.5, (16, 0.97): 1.5, (32, 0.95): 1.5, (16, 0.95): 0.8}
"""Ranks and balancedness asked for: the part of the slots that may change, in %."""
NEAR_MOVES = 0.3
WALL_MS = 30.0
NOISE_BALANCE = 0.985

_NOTE_CHANGE = (
    "From our own even-share plan for the first heat. Every layer is to reach the balancedness named; "
    "'incremental' with shares, the other policies split evenly. One redundant slot a rank. {source}"
)
_NOTE_NOISE = (
    "Each expert's heat times log-normal noise, {seeds} seeds, from our plan with shares. 'static' changes "
    "shares alone. The worst layer is that of all seeds. {source}"
)


def measure_changes(heats: Heats, *, quick: bool) -> Section:
    """Every policy after each change of traffic."""
    figures: list[Figure] = []
    targets: list[Target] = []
    changes = {
        "decode to prefill": (heats.first, heats.far),
        "prefill to decode": (heats.far, heats.first),
        "near": (heats.first, heats.near),
    }
    for ranks in RANKS:
        topology = Topology.for_model(experts=heats.first.shape[1], redundant=ranks, ranks=ranks)
        for name, (before, after) in changes.items():
            start = plan(before, topology, shares="even").placement
            for policy, goal in [("incremental", 0.95), *((each, 0.97) for each in policies())]:
                row = f"EP{ranks}+{ranks} {name} to {goal}, {policy}"
                shares: ShareRule = "balanced" if policy == "incremental" else "even"
                make = partial(
                    plan, after, topology, start, policy=policy, shares=shares, max_imbalance=1 / goal
                )
                measured = measure_plans(row, [make], quick=quick)
                figures += measured.figures(moves=True)
                if policy != "incremental":
                    continue
                limit = NEAR_MOVES if name == "near" else LARGE[ranks, goal]
                wall = float(np.median(measured.wall_ms))
                targets += [
                    Target(f"{row}: worst layer", float(measured.balance.min()), goal, at_least=True),
                    Target(f"{row}: slots changed, %", 100 * measured.moved, limit),
                    Target(f"{row}: wall ms", wall, WALL_MS),
                ]
    return Section(
        "Plans after a change", _NOTE_CHANGE.format(source=heats.source), tuple(figures), tuple(targets)
    )


def measure_noise(heats: Heats, *, quick: bool) -> Section:
    """What noise alone does to a plan at its bound."""
    figures: list[Figure] = []
    targets: list[Target] = []
    seeds = range(2 if quick else SEEDS)
    for ranks in RANKS:
        topology = Topology.for_model(experts=heats.first.shape[1], redundant=ranks, ranks=ranks)
        start = plan(heats.first, topology).placement
        for sigma in (0.01, 0.05):
            noises = [np.random.default_rng(seed).lognormal(0, sigma, heats.first.shape) for seed in seeds]
            for policy in ("static", "incremental"):
                row = f"EP{ranks}+{ranks} noise of {sigma:.0%}, {policy}"
                makes: list[Callable[[], Plan]] = [
                    partial(plan, heats.first * noise, topology, start, policy=policy) for noise in noises
                ]
                measured = measure_plans(row, makes, quick=True)
                figures += measured.figures(moves=True)
                if policy == "static":
                    worst = float(measured.balance.min())
                    targets.append(Target(f"{row}: worst layer", worst, NOISE_BALANCE, at_least=True))
                else:
                    targets.append(Target(f"{row}: slots changed, %", 100 * measured.moved, 0.0))
    note = _NOTE_NOISE.format(seeds=len(seeds), source=heats.source)
    return Section("Plans under noise", note, tuple(figures), tuple(targets))
