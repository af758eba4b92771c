"""Traces that tests make."""

from __future__ import annotations

import numpy as np

from isotherm.placement import Placement
from isotherm.topology import MoEShape, Topology
from isotherm.traces.header import ON_REQUEST, HeatHeader
from isotherm.window import HeatWindow

SHAPE = MoEShape(layers=3, experts=8, top_k=2, layer_ids=(1, 2, 5))
TOPOLOGY = Topology.for_model(experts=8, redundant=4, ranks=4, nodes=2)
HEADER = HeatHeader.of(SHAPE, TOPOLOGY, model="a model", engine="an engine")


def a_window(
    number: int = 0, *, slices: int = 2, loads: bool = True, header: HeatHeader = HEADER
) -> HeatWindow:
    """Window ``number``: other heat in each kind, slice, layer and expert."""
    rng = np.random.default_rng(number)
    layers, kinds = len(header.layer_ids), len(header.kinds)
    heat_KSLE = rng.integers(0, 10 ** rng.integers(1, 12), (kinds, slices, layers, header.experts))
    load_LGS = None
    if loads and header.topology is not None:
        load_LGS = rng.integers(0, 1000, (layers, header.topology.ranks, header.topology.slots_per_rank))
    steps = tuple(range(number * 10, number * 10 + slices + 1))
    return HeatWindow(heat_KSLE, load_LGS, steps, rng.integers(0, 99, kinds), header.layer_ids)


def a_placement(number: int = 0) -> Placement:
    """No expert is twice on a rank."""
    rng, rows = np.random.default_rng(number), []
    while len(rows) < SHAPE.layers:
        row_P = rng.permutation(np.arange(TOPOLOGY.slots) % SHAPE.experts)
        if all(len(set(held)) == len(held) for held in row_P.reshape(TOPOLOGY.ranks, -1).tolist()):
            rows.append(row_P)
    return Placement(np.array(rows), SHAPE.experts)


def same_window(one: HeatWindow, other: HeatWindow) -> bool:
    """Whether all that two windows hold is equal."""
    pairs = [(getattr(one, name), getattr(other, name)) for name in ON_REQUEST]
    return (
        all(a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs)
        and np.array_equal(one.heat_KSLE, other.heat_KSLE)
        and np.array_equal(one.tokens_K, other.tokens_K)
        and one.slice_steps == other.slice_steps
        and one.layer_ids == other.layer_ids
    )
