"""How planning time grows with layers and with slots."""

from __future__ import annotations

import math
import time

import numpy as np

from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.plan_heat import draw_heat
from isotherm.planner import plan
from isotherm.topology import Topology

EXPERTS, LAYERS = 512, 92
RANKS = (192, 256, 384, 512, 768, 1024)
SLOTS_PER_RANK = 3
LAYER_COUNTS = (23, 46, 92)
FEW_LAYERS = 2
"""Planned at each number of ranks: time is linear in layers, and many ranks take long."""

_NOTE = (
    "512 experts, 3 slots a rank. CPU time of all threads, the least of the runs. 'again': from the plan for "
    "other heat, to 1.03. Exponents: the slope of the logarithms; 1 is linear."
)


def measure_growth(*, quick: bool) -> Section:
    """CPU time over ranks and over layers, and the exponents of both."""
    ranks, layers = (RANKS[:2], (1, 3)) if quick else (RANKS, LAYER_COUNTS)
    by_ranks = {count: _milliseconds(FEW_LAYERS, count, quick) for count in ranks}
    by_layers = {count: _milliseconds(count, ranks[0], quick) for count in layers}
    figures = [
        Figure.exact(f"{g:,} ranks, {SLOTS_PER_RANK * g:,} slots, {n} layers", name, "ms", milliseconds)
        for (g, n), times in [
            *(((g, FEW_LAYERS), times) for g, times in by_ranks.items()),
            *(((ranks[0], n), times) for n, times in by_layers.items()),
        ]
        for name, milliseconds in zip(("fresh", "again"), times)
    ]
    slots = {SLOTS_PER_RANK * count: times for count, times in by_ranks.items()}
    targets = []
    for index, name in enumerate(("fresh", "again")):
        in_layers = _exponent({n: times[index] for n, times in by_layers.items()})
        in_slots = _exponent({n * math.log(n): times[index] for n, times in slots.items()})
        targets += [
            Target(f"{name}: exponent in layers", in_layers, 1.1),
            Target(f"{name}: exponent in slots x log(slots)", in_slots, 1.1),
        ]
    return Section("How planning time grows", _NOTE, tuple(figures), tuple(targets))


def _milliseconds(layers: int, ranks: int, quick: bool) -> tuple[float, float]:
    """CPU time of a plan from nothing, and of one from there for other heat."""
    heat_LE = draw_heat(layers, EXPERTS)
    topology = Topology(ranks=ranks, slots_per_rank=SLOTS_PER_RANK)
    start = plan(heat_LE, topology).placement
    other_LE = heat_LE * np.random.default_rng(2).lognormal(0, 0.5, heat_LE.shape)
    fresh, again = [], []
    for _ in range(1 if quick else 3):
        begun = time.process_time()
        plan(heat_LE, topology)
        middle = time.process_time()
        plan(other_LE, topology, start)
        fresh.append(middle - begun)
        again.append(time.process_time() - middle)
    return 1e3 * min(fresh), 1e3 * min(again)


def _exponent(times: dict[float, float]) -> float:
    """The slope of log(time) over log(size)."""
    slope, _ = np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)
    return float(slope)
