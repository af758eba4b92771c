"""Pairs that cross nodes: how much of the bound plans cut, and what of balance they give up for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.plan_heat import Heats
from isotherm.placement import Plan
from isotherm.planner import plan
from isotherm.planner.locality.crossing import crossing_bound, crossing_pairs
from isotherm.topology import Topology

RANKS = 32
NODES = (2, 4)
SLACKS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
"""Balancedness given up: the frontier."""
HELD_TO = 0.01
"""The slack whose plans the targets are for."""
CUT = 0.8
"""Of what the bound allows to cut."""

_NOTE = (
    "EP{ranks}+{ranks} from nothing, beside a plan that knows no nodes. cut: the part of its crossing pairs "
    "that are spared; bound: the most that any placement spares, whatever its balance; of the bound: one "
    "over the other. 'alike': every node sends the same; 'apart': nodes send the first and the second kind "
    "of traffic in turn. Dispatch fills what a node gets with the node's own. Heat: {source}"
)


@dataclass(frozen=True)
class Cut:
    """What one plan does for locality. Parts of all pairs, and balancedness over the layers.

    Attributes:
        blind: pairs that cross with the plan that knows no nodes, and dispatch that prefers none.
        found: with this plan.
        bound: with any.
        mean, worst: balancedness of this plan.
        given_up: the most that any layer's balancedness is below that of the plan that knows no nodes.
    """

    blind: float
    found: float
    bound: float
    mean: float
    worst: float
    given_up: float

    @property
    def cut(self) -> float:
        return 1 - self.found / self.blind

    @property
    def most(self) -> float:
        """The cut that the bound allows."""
        return 1 - self.bound / self.blind

    @property
    def of_bound(self) -> float:
        return self.cut / self.most


def source_heats(heats: Heats, nodes: int, *, alike: bool) -> FloatArray:
    """Heat by the node that its tokens come from, float64 [nodes, layers, experts], each node with as many
    tokens: of the first traffic from all nodes, or of the first and the second in turn."""
    per_layer_L1 = heats.first.sum(axis=1, keepdims=True)
    far_LE = heats.far * (per_layer_L1 / heats.far.sum(axis=1, keepdims=True))
    kinds = (heats.first, heats.first if alike else far_LE)
    return np.stack([kinds[node % 2] / nodes for node in range(nodes)])


def cuts_of(source_NLE: FloatArray, topology: Topology, slacks: tuple[float, ...]) -> list[Cut]:
    """What plans with each slack do for this heat."""
    heat_LE = source_NLE.sum(axis=0)
    pairs = float(heat_LE.sum())
    plain = plan(heat_LE, topology)
    blind = crossing_pairs(source_NLE, plain.placement, plain.shares, topology, prefers_near=False)
    bound = crossing_bound(source_NLE, topology)

    def cut_of(near: Plan) -> Cut:
        found = crossing_pairs(source_NLE, near.placement, near.shares, topology, prefers_near=True)
        balance_L = 1 / near.imbalance
        return Cut(
            blind=float(blind.sum()) / pairs,
            found=float(found.sum()) / pairs,
            bound=float(bound.sum()) / pairs,
            mean=float(balance_L.mean()),
            worst=float(balance_L.min()),
            given_up=float((1 / plain.imbalance - balance_L).max()),
        )

    return [cut_of(plan(heat_LE, topology, source_heat=source_NLE, locality_slack=slack)) for slack in slacks]


def measure_locality(heats: Heats, *, quick: bool) -> Section:
    """The frontier of pairs that cross over balancedness, for two and four nodes and two kinds of sources."""
    figures: list[Figure] = []
    targets: list[Target] = []
    slacks = (HELD_TO,) if quick else SLACKS
    experts = heats.first.shape[1]
    for nodes in NODES:
        topology = Topology.for_model(experts=experts, redundant=RANKS, ranks=RANKS, nodes=nodes)
        for alike in (True, False):
            source_NLE = source_heats(heats, nodes, alike=alike)
            for slack, cut in zip(slacks, cuts_of(source_NLE, topology, slacks), strict=True):
                row = f"{nodes} nodes {'alike' if alike else 'apart'}, slack {slack:g}"
                figures += _figures(row, cut)
                if slack == HELD_TO:
                    targets.append(Target(f"{row}: of the bound", cut.of_bound, CUT, at_least=True))
                    targets.append(Target(f"{row}: balancedness given up", cut.given_up, HELD_TO + 1e-6))
    note = _NOTE.format(ranks=RANKS, source=heats.source)
    return Section("Pairs that cross nodes", note, tuple(figures), tuple(targets))


def _figures(row: str, cut: Cut) -> list[Figure]:
    return [
        Figure.exact(row, "crossing", "% of pairs", 100 * cut.found),
        Figure.exact(row, "cut", "%", 100 * cut.cut),
        Figure.exact(row, "bound", "%", 100 * cut.most),
        Figure.exact(row, "of the bound", "", cut.of_bound),
        Figure.exact(row, "balancedness", "", cut.mean),
        Figure.exact(row, "worst layer", "", cut.worst),
        Figure.exact(row, "given up", "", cut.given_up),
    ]
