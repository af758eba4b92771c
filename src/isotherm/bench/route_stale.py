"""A plan made for other traffic, served with shares that follow one window late."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.plan_heat import Heats
from isotherm.placement import rank_loads
from isotherm.planner import balanced_shares, plan
from isotherm.topology import Topology
from isotherm.window import overall_imbalance

STEPS = 256
EFFECTIVE = 4000
"""Independent choices that a step's counts in a layer are worth: steps of real traffic are noisy."""
WINDOWS = 5
OF_BEST = 0.98

_NOTE = (
    "EP32+32, {layers} layers: planned for one workload, served another; windows of {steps} steps, each "
    "as noisy as {effective:,} independent choices of an expert a layer. Balancedness of a window, mean "
    "over hottest rank, summed over layers. 'as planned': by the plan's own shares; 'one window late': by "
    "shares balanced for the window before; 'best': by the exact linear program for the window's own "
    "heat, which no dispatch knows beforehand; 'half late': shares from a window in which traffic changed "
    "halfway. Median (p10 to p90) of windows. {source}"
)


def measure_stale(heats: Heats, *, quick: bool) -> Section:
    """Every workload's plan on every other workload."""
    loads = {"first": heats.first, "far": heats.far, "near": heats.near}
    topology = Topology.for_model(experts=heats.first.shape[1], redundant=32, ranks=32)
    figures: list[Figure] = []
    targets: list[Target] = []
    for planned, served in permutations(loads, 2):
        row = f"planned on {planned}, served {served}"
        found = _serve(loads[planned], loads[served], topology, windows=2 if quick else WINDOWS)
        figures += [Figure.of(row, name, "", values.tolist()) for name, values in found.items()]
        of_best = np.median(found["one window late"] / found["best"])
        targets.append(Target(f"{row}: one window late of best", float(of_best), OF_BEST, at_least=True))
    note = _NOTE.format(
        layers=len(heats.first), steps=STEPS, effective=EFFECTIVE, source=f"Heat: {heats.source}"
    )
    return Section("Stale plans, shares one window late", note, tuple(figures), tuple(targets))


def _serve(
    planned_LE: FloatArray, served_LE: FloatArray, topology: Topology, windows: int
) -> dict[str, FloatArray]:
    """Balancedness of each window under each way to share."""
    made = plan(planned_LE, topology)
    rng = np.random.default_rng(0)

    def shares_for(heat_LE: FloatArray | Int64Array) -> FloatArray:
        return balanced_shares(heat_LE, made.placement, topology)

    found: dict[str, list[float]] = {}
    for _ in range(windows):
        other_LE, before_LE, now_LE = (
            _window(heat_LE, rng) for heat_LE in (planned_LE, served_LE, served_LE)
        )
        for name, shares_LP in (
            ("as planned", made.shares),
            ("half late", shares_for(other_LE + before_LE)),
            ("one window late", shares_for(before_LE)),
            ("best", shares_for(now_LE)),
        ):
            load_LG = rank_loads(now_LE, made.placement, shares_LP, topology)
            found.setdefault(name, []).append(1 / overall_imbalance(load_LG))
    return {name: np.array(values) for name, values in found.items()}


def _window(heat_LE: FloatArray, rng: np.random.Generator) -> Int64Array:
    """Counts of one window of this traffic, int64 [layers, experts]."""
    parts_LE = heat_LE / heat_LE.sum(axis=1, keepdims=True)
    return rng.multinomial(STEPS * EFFECTIVE, parts_LE)
