"""What dispatch makes of a plan, batch by batch: balance achieved over planned, and traffic."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.plan_heat import Heats
from isotherm.bench.route_batches import draw_ids
from isotherm.bench.route_rules import (
    Rule,
    by_shares,
    even_hash,
    levelled,
    near_first,
    nearest_replica,
    one_per_source,
)
from isotherm.placement import Plan, rank_loads
from isotherm.planner import plan
from isotherm.topology import Topology
from isotherm.window import overall_imbalance

TOP_K = 8
NODES = 4
BATCHES = {128: 12, 1024: 8, 8192: 3}
"""Tokens of each rank in a batch, and how many batches of every layer are drawn."""
LAYERS = 6
ACHIEVED = 0.99
NEAR_COSTS = 0.01

_NOTE = (
    "EP32+32 on {nodes} nodes, {layers} layers, each batch a draw of top {top_k} for the tokens of all 32 "
    "ranks. Balancedness: mean over hottest rank, summed over layers. 'of planned': over what the plan "
    "says for the heat that it was made for, so the noise of the batch is in it; 'of the batch': over "
    "what the planned split, with fractions of tokens, makes of this batch's own counts: what dispatch "
    "alone loses, or, above 1, takes back. Traffic: (token, expert) pairs whose slot is not on the "
    "token's rank, or node, and (token, node) pairs besides the token's own node. Engines' rules serve a "
    "plan for even splits, ours one with shares. {source}"
)


@dataclass
class _Served:
    """One way of dispatch and what it did, batch by batch."""

    rule: Rule
    plan: Plan
    load_BLG: list[FloatArray] = field(default_factory=list)
    crossing: Int64Array = field(default_factory=lambda: np.zeros(3, np.int64))
    """Pairs across ranks, across nodes, and (token, node) pairs."""


def measure_achieved(heats: Heats, *, quick: bool) -> Section:
    """All ways at every size of batch."""
    heat_LE = heats.first[np.linspace(0, len(heats.first) - 1, 1 if quick else LAYERS).astype(int)]
    topology = Topology.for_model(experts=heat_LE.shape[1], redundant=32, ranks=32, nodes=NODES)
    figures: list[Figure] = []
    targets: list[Target] = []
    for tokens, batches in BATCHES.items():
        if quick and tokens > 1024:
            continue
        ways = _ways(heat_LE, topology)
        count_BLE = _serve(ways, heat_LE, topology, tokens, 2 if quick else batches)
        for name, way in ways.items():
            row = f"{tokens:,} tokens a rank, {name}"
            figures += _figures(row, way, topology, count_BLE)
        targets += _targets(ways, topology, count_BLE, tokens)
    note = _NOTE.format(nodes=NODES, layers=len(heat_LE), top_k=TOP_K, source=heats.source)
    return Section("Balance that dispatch achieves, and traffic", note, tuple(figures), tuple(targets))


def _ways(heat_LE: FloatArray, topology: Topology) -> dict[str, _Served]:
    even, ours = plan(heat_LE, topology, shares="even"), plan(heat_LE, topology)
    source_NLE = np.stack([heat_LE / NODES] * NODES)
    near = plan(heat_LE, topology, source_heat=source_NLE, locality_slack=NEAR_COSTS)
    return {
        "even hash": _Served(even_hash(even.placement), even),
        "nearest replica": _Served(nearest_replica(even.placement, topology), even),
        "one replica per source": _Served(one_per_source(even.placement), even),
        "ours": _Served(by_shares(ours, topology), ours),
        "ours, near first": _Served(near_first(ours, topology), ours),
        "ours, planned for it, near first": _Served(near_first(near, topology, source_NLE), near),
        "ours, batch levelled": _Served(levelled(ours, topology, heat_LE), ours),
    }


def _serve(
    ways: dict[str, _Served], heat_LE: FloatArray, topology: Topology, tokens: int, batches: int
) -> list[Int64Array]:
    """Draws batches and lets every way serve them; the counts of each batch, [layers, experts]."""
    rng, counts = np.random.default_rng(tokens), []
    for step in range(batches):
        count_LE = np.zeros(heat_LE.shape, np.int64)
        for way in ways.values():
            way.load_BLG.append(np.zeros((len(heat_LE), topology.ranks)))
        for layer, heat_E in enumerate(heat_LE):
            for rank in range(topology.ranks):
                ids_TK = draw_ids(heat_E, TOP_K, tokens, rng)
                count_LE[layer] += np.bincount(ids_TK.ravel(), minlength=len(heat_E))
                for way in ways.values():
                    to_TK = way.rule(rank, layer, step, ids_TK) // topology.slots_per_rank
                    way.load_BLG[-1][layer] += np.bincount(to_TK.ravel(), minlength=topology.ranks)
                    way.crossing += count_crossing(to_TK, rank, topology)
        counts.append(count_LE)
    return counts


def count_crossing(to_TK: Int64Array, rank: int, topology: Topology) -> Int64Array:
    """Of tokens that ``rank`` sends to the ranks ``to_TK``: pairs to other ranks, pairs to other nodes, and
    (token, node) pairs with another node, int64 [3]."""
    per_node = topology.ranks_per_node
    node_TK, own = to_TK // per_node, rank // per_node
    visited = [(node_TK == node).any(axis=1).sum() for node in range(topology.nodes) if node != own]
    return np.array([(to_TK != rank).sum(), (node_TK != own).sum(), sum(visited)], np.int64)


def _balance(way: _Served) -> float:
    """The median of what it achieved."""
    return float(np.median([1 / overall_imbalance(load_LG) for load_LG in way.load_BLG]))


def _ratios(way: _Served) -> list[float]:
    """Achieved over planned balancedness of each batch."""
    planned = float(way.plan.imbalance.mean())
    return [planned / overall_imbalance(load_LG) for load_LG in way.load_BLG]


def _of_batch(way: _Served, topology: Topology, count_BLE: list[Int64Array]) -> list[float]:
    """Achieved balancedness of each batch over that of its own counts, split by the planned shares."""
    split = [rank_loads(count_LE, way.plan.placement, way.plan.shares, topology) for count_LE in count_BLE]
    return [overall_imbalance(a) / overall_imbalance(b) for a, b in zip(split, way.load_BLG)]


def _figures(row: str, way: _Served, topology: Topology, count_BLE: list[Int64Array]) -> list[Figure]:
    achieved = [1 / overall_imbalance(load_LG) for load_LG in way.load_BLG]
    pairs = sum(int(count_LE.sum()) for count_LE in count_BLE)
    ranks, nodes, token_nodes = way.crossing.tolist()
    return [
        Figure.exact(row, "planned", "", 1 / float(way.plan.imbalance.mean())),
        Figure.of(row, "achieved", "", achieved),
        Figure.of(row, "of planned", "", _ratios(way)),
        Figure.of(row, "of the batch", "", _of_batch(way, topology, count_BLE)),
        Figure.exact(row, "across ranks", "%", 100 * ranks / pairs),
        Figure.exact(row, "across nodes", "%", 100 * nodes / pairs),
        Figure.exact(row, "nodes a token", "", token_nodes * TOP_K / pairs),
    ]


def _targets(
    ways: dict[str, _Served], topology: Topology, count_BLE: list[Int64Array], tokens: int
) -> list[Target]:
    """A split that does not look at the batch cannot take back its noise: ours by shares is held to what
    shares make of the batch too."""
    if tokens < 1024:
        return []
    medians = {name: float(np.median(_ratios(way))) for name, way in ways.items()}
    of_batch = float(np.median(_of_batch(ways["ours"], topology, count_BLE)))
    lost = _balance(ways["ours"]) - _balance(ways["ours, near first"])
    lost_both = _balance(ways["ours"]) - _balance(ways["ours, planned for it, near first"])
    at = f"at {tokens:,} tokens a rank"
    level = "ours, batch levelled"
    return [
        Target(f"ours: achieved of planned {at}", medians["ours"], ACHIEVED, at_least=True),
        Target(f"ours: achieved of the batch {at}", of_batch, ACHIEVED, at_least=True),
        Target(f"{level}: achieved of planned {at}", medians[level], ACHIEVED, at_least=True),
        Target(f"near first: balancedness that it costs {at}", lost, NEAR_COSTS),
        Target(f"planned for it and near first: balancedness that both cost {at}", lost_both, NEAR_COSTS),
    ]
