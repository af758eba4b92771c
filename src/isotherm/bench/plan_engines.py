"""The same heat planned for each engine's dispatch, beside an even plan that it serves."""

from __future__ import annotations

from functools import partial
from typing import get_args

from isotherm.bench.figures import Figure, Section
from isotherm.bench.plan_cases import measure_plans
from isotherm.bench.plan_heat import Heats
from isotherm.planner import Engine, plan
from isotherm.topology import Topology

_NOTE = (
    "EP32+32 from nothing. 'even plan': planned for an even split, and served as the engine dispatches. "
    "'planned for it': planned for that dispatch. Heat: {source}"
)


def measure_engines(heats: Heats, *, quick: bool) -> Section:
    """What each engine makes of a plan that does not know it, and of one that does."""
    figures: list[Figure] = []
    for nodes in (1, 4):
        topology = Topology.for_model(experts=heats.first.shape[1], redundant=32, ranks=32, nodes=nodes)
        even = plan(heats.first, topology, shares="even").placement
        for engine in get_args(Engine):
            row = f"{engine}, {nodes} nodes" if nodes > 1 else f"{engine}, 1 node"
            served = partial(plan, heats.first, topology, even, policy="static", engine=engine)
            planned = partial(plan, heats.first, topology, engine=engine)
            for name, make in (("even plan", served), ("planned for it", planned)):
                figures += measure_plans(f"{row}: {name}", [make], quick=quick).figures(moves=False)
    return Section("Plans as each engine serves them", _NOTE.format(source=heats.source), tuple(figures))
