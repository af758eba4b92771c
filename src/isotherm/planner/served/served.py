"""The default policy for each engine: searched by what shares can do, or by what the engine does."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.planner.locality.near_tokens import place_near_tokens
from isotherm.planner.policy.incremental import place_incremental
from isotherm.planner.request import PlanRequest
from isotherm.planner.served.dispatch import rule_of, source_parts
from isotherm.planner.served.dispatch_kernels import EVEN, NEAREST, Served, new_served, search_served


def place_for_engine(request: PlanRequest) -> Int64Array:
    """Slots to experts, int64 [layers, slots]: as `place_incremental`, for whoever serves the plan.

    Where the engine sends an expert's replicas neither shares nor equal parts, the search goes on from there
    under the engine's own rule: slots of the hottest rank trade places with others, and redundant slots are
    given to its experts, until ``max_imbalance`` is reached, nothing helps, or ``max_moves`` are made, the
    hottest layers first. Where that rule is far from equal parts (the nearest replica), it starts from what
    the slots hold now: moves that equal parts call for would be wasted.

    Where pairs that cross nodes have a say, `place_near_tokens` answers.

    Raises:
        ValueError: as `place_incremental`.
    """
    if request.locality_slack is not None:
        return place_near_tokens(request)
    split = rule_of(request.engine).split
    if split in (None, EVEN):
        return place_incremental(request)
    if split == NEAREST and request.current is not None:
        placed_LP = request.current.slot_to_expert.astype(np.int64)
    else:
        placed_LP = place_incremental(request)
    _search(request, split, placed_LP)
    return placed_LP


def _search(request: PlanRequest, split: int, placed_LP: Int64Array) -> None:
    """Changes ``placed_LP`` in place."""
    source_LEN = source_parts(request.source_heat_NLE, request.heat_LE.shape, request.topology.nodes)
    left = placed_LP.size
    if request.current is not None and request.max_moves is not None:
        left = request.max_moves - int((placed_LP != request.current.slot_to_expert).sum())
    mean_L = request.heat_LE.sum(axis=1) / request.topology.ranks
    layers: list[tuple[float, Served]] = []
    for layer in np.flatnonzero(mean_L > 0):
        heat_E = request.heat_LE[layer] / mean_L[layer]
        served = new_served(placed_LP[layer], heat_E, source_LEN[layer], request.topology.ranks, split)
        layers.append((float(served.load_G.max() * mean_L[layer]), served))
    for _, served in sorted(layers, key=lambda each: -each[0]):
        before_P = served.slot_expert_P.copy()
        search_served(served, request.max_imbalance, left)
        left -= int((served.slot_expert_P != before_P).sum())
