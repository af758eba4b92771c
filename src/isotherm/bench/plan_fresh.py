"""Plans from nothing: every policy at every shape, the small fixture, and how the time grows."""

from __future__ import annotations

from functools import partial

import numpy as np

from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.plan_cases import Measured, measure_plans
from isotherm.bench.plan_heat import Heats, draw_heat
from isotherm.planner import plan, policies
from isotherm.planner.request import ShareRule
from isotherm.topology import Topology

DEEPSEEK_V3 = ((8, 8), (16, 16), (32, 32), (64, 64), (128, 128), (144, 32), (320, 64))
"""Ranks and redundant slots."""
OTHER_MODELS = {"Qwen3-235B": (94, 128, 32, 32), "Kimi-K2": (60, 384, 64, 64)}
"""Layers, experts, ranks and redundant slots."""
EVEN_TARGETS = {
    (32, 32): (0.9995, 15),
    (64, 64): (0.998, 30),
    (128, 128): (0.996, 60),
    (144, 32): (0.872, None),
}
"""Mean balancedness of even shares, and milliseconds."""
NEAR_BOUND = 1e-3
FIXTURE = (600, 560, 120, 120, 20, 10, 10, 10)
FIXTURE_OPTIMUM = 590 / 3

_NOTE = (
    "Balancedness, mean over hottest rank, over the layers; bound: the mean of what no placement surpasses. "
    "CPU: all threads of the process; wall: two threads. Median (p10 to p90). Policies other than "
    "'incremental' split evenly. Heat: {source}; other models: drawn."
)


def measure_fresh(heats: Heats, *, quick: bool) -> Section:
    """All policies at all shapes."""
    figures: list[Figure] = []
    targets: list[Target] = []
    shapes = [("DeepSeek-V3", heats.first, *shape) for shape in DEEPSEEK_V3]
    for model, (layers, experts, ranks, redundant) in OTHER_MODELS.items():
        shapes.append((model, draw_heat(2 if quick else layers, experts), ranks, redundant))
    for model, heat_LE, ranks, redundant in shapes:
        topology = Topology.for_model(experts=heat_LE.shape[1], redundant=redundant, ranks=ranks)
        kinds: list[tuple[str, ShareRule]] = [("incremental", "balanced")]
        kinds += [(policy, "even") for policy in policies()]
        for policy, shares in kinds:
            row = f"{model} EP{ranks}+{redundant} {policy}" + (", shares" if shares == "balanced" else "")
            make = partial(plan, heat_LE, topology, policy=policy, shares=shares)
            measured = measure_plans(row, [make], quick=quick)
            figures += measured.figures(moves=False)
            if policy == "incremental" and model == "DeepSeek-V3":
                targets += _targets(measured, shares, topology, (ranks, redundant))
    return Section("Plans from nothing", _NOTE.format(source=heats.source), tuple(figures), tuple(targets))


def _targets(measured: Measured, shares: str, topology: Topology, shape: tuple[int, int]) -> list[Target]:
    if shares == "balanced":
        (found,) = measured.plans
        gap = float((found.imbalance / found.bound - 1).max())
        return (
            [Target(f"{measured.row}: above the bound", gap, NEAR_BOUND)]
            if topology.slots_per_rank > 3
            else []
        )
    if shape not in EVEN_TARGETS:
        return []
    balance, milliseconds = EVEN_TARGETS[shape]
    targets = [
        Target(f"{measured.row}: balancedness", float(measured.balance.mean()), balance, at_least=True)
    ]
    if milliseconds is not None:
        targets.append(Target(f"{measured.row}: wall ms", float(np.median(measured.wall_ms)), milliseconds))
    return targets


def measure_fixture() -> Section:
    """Eight experts on eight ranks of two slots, whose optimum is known by exhaustive search."""
    topology = Topology(ranks=8, slots_per_rank=2)
    figures, targets = [], []
    for policy in policies():
        found = plan([FIXTURE], topology, policy=policy, shares="even")
        hottest = float(found.imbalance[0] * sum(FIXTURE) / topology.ranks)
        figures.append(Figure.exact(policy, "hottest rank", "", hottest))
        if policy == "incremental":
            targets.append(Target("hottest rank of the small fixture", hottest, FIXTURE_OPTIMUM + 1e-9))
    note = (
        f"Heats {FIXTURE} on 8 ranks of 2 slots, even shares. Optimum by exhaustion: {FIXTURE_OPTIMUM:.2f}."
    )
    return Section("The small fixture", note, tuple(figures), tuple(targets))
