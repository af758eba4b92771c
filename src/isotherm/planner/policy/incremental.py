"""The default policy: from what is, one change at a time, while a change helps."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.planner.bounds import imbalance_bound
from isotherm.planner.fresh.fresh import peak_under, place_layers
from isotherm.planner.layers.log_kernels import new_log
from isotherm.planner.request import PlanRequest
from isotherm.planner.search.search_kernels import search_layers, trace_layer

NEAR_BOUND = {"even": 1e-2, "balanced": 1e-3}
"""A placement from nothing is good enough within this part of its lower bound. With even shares a search
finds next to nothing after packing and trading, and takes ten times as long."""

PERFECT = 1 + 1e-6
"""No layer at or below this is searched: what is above 1 may be rounding."""

BLOCKS = 4
"""Layers are handed to each thread in about so many blocks: some layers take much longer than others."""


@dataclass(frozen=True, eq=False)
class _Path:
    """What the search found for one layer, change by change: after the first ``k`` the hottest rank carries
    ``peak_K[k]``, in the unit of heat, and ``moves_K[k]`` slots differ from what they were. The last of both
    is the goal itself, without the changes that it does not need."""

    slot_K: Int64Array
    expert_K: Int64Array
    peak_K: FloatArray
    moves_K: Int64Array


def place_incremental(request: PlanRequest) -> Int64Array:
    """Slots to experts, int64 [layers, slots], near to what the slots hold now.

    Each layer above ``max_imbalance`` changes the redundant slot that takes most off the ranks above it,
    counting the shares that then serve it, or two slots where no single one helps, until none is above;
    changes that this does not need are then taken back. A layer that cannot be brought there is brought as
    low as was found. Within ``max_moves`` the changes that lower the sum of the hottest ranks most per move
    come first, over all layers; those that lower it by less than ``min_gain_per_move`` are left out.

    Where nothing is loaded yet the way begins at what `place_layers` places, and ends within ``NEAR_BOUND``
    of the lower bound.

    Raises:
        ValueError: groups were asked for, which this policy does not keep on their nodes.
    """
    if request.groups > 1:
        raise ValueError(
            f"groups={request.groups}: policy 'incremental' does not keep groups on their nodes; choose "
            "policy='deepseek', or leave groups out"
        )
    # Writable copies: other types of array would be compiled for, each by itself.
    heat_LE, goal = np.array(request.heat_LE), max(request.max_imbalance, PERFECT)
    if request.current is None:
        start_LP = _place(request, heat_LE)
        near_L = imbalance_bound(request.heat_LE, request.topology) * (1 + NEAR_BOUND[request.shares])
        return _search(request, heat_LE, start_LP, np.maximum(goal, near_L))
    start_LP = request.current.slot_to_expert.astype(np.int64)
    goal_LP = _search(request, heat_LE, start_LP, np.full(request.layers, goal))
    most = len(start_LP.ravel()) if request.max_moves is None else request.max_moves
    if request.min_gain_per_move == 0 and (goal_LP != start_LP).sum() <= most:
        return goal_LP
    paths = [_trace(request, *layer, goal) for layer in zip(heat_LE, start_LP, goal_LP, strict=True)]
    rows_L = _affordable(paths, most, request.min_gain_per_move)
    for row_P, goal_P, path, row in zip(start_LP, goal_LP, paths, rows_L, strict=True):
        if row > len(path.slot_K):
            row_P[:] = goal_P
            continue
        for slot, expert in zip(path.slot_K[:row], path.expert_K[:row], strict=True):
            row_P[slot] = expert
    return start_LP


def _place(request: PlanRequest, heat_LE: FloatArray) -> Int64Array:
    """All layers from nothing."""
    topology, balanced = request.topology, request.shares == "balanced"
    start_LP = np.empty((request.layers, topology.slots), np.int64)

    def place(rows: slice) -> None:
        place_layers(heat_LE[rows], topology.ranks, topology.slots_per_rank, balanced, start_LP[rows])

    _in_blocks(request, place)
    return start_LP


def _search(
    request: PlanRequest, heat_LE: FloatArray, start_LP: Int64Array, target_L: FloatArray
) -> Int64Array:
    """The layers brought to their targets."""
    goal_LP, ranks = np.empty_like(start_LP), request.topology.ranks
    balanced, frugal = request.shares == "balanced", request.current is not None

    def search(rows: slice) -> None:
        search_layers(start_LP[rows], heat_LE[rows], target_L[rows], ranks, balanced, frugal, goal_LP[rows])

    _in_blocks(request, search)
    return goal_LP


def _in_blocks(request: PlanRequest, work: Callable[[slice], None]) -> None:
    """Does the work of all layers, block by block on the request's threads."""
    size = -(-request.layers // (BLOCKS * request.threads)) if request.threads > 1 else request.layers
    blocks = [slice(first, first + size) for first in range(0, request.layers, size)]
    if len(blocks) == 1:
        work(blocks[0])
    else:
        with ThreadPoolExecutor(request.threads, "isotherm-plan") as pool:
            list(pool.map(work, blocks))


def _trace(
    request: PlanRequest, heat_E: FloatArray, start_P: Int64Array, goal_P: Int64Array, target: float
) -> _Path:
    ranks, balanced = request.topology.ranks, request.shares == "balanced"
    log, mean, before, after = new_log(start_P, 2 * len(start_P)), float(heat_E.sum()) / ranks, 0.0, 0.0
    if mean > 0:
        before = trace_layer(heat_E, target, ranks, balanced, log)
        after = peak_under(goal_P, heat_E / mean, ranks, balanced)
    rows = int(log.rows_1[0])
    return _Path(
        slot_K=log.slot_K[:rows],
        expert_K=log.expert_K[:rows],
        peak_K=np.concatenate([[before], log.peak_K[:rows], [after]]) * mean,
        moves_K=np.concatenate([[0], log.moves_K[:rows], [(goal_P != start_P).sum()]]),
    )


def _affordable(paths: list[_Path], max_moves: int, least: float) -> list[int]:
    """How many changes of each path to make within the budget: stretches of the paths, the steepest first,
    as far as a move gains ``least``."""
    rows, left = [0] * len(paths), max_moves
    stretches = [
        (slope, layer, row)
        for layer, path in enumerate(paths)
        for slope, row in _stretches(path)
        if slope >= least
    ]
    closed: set[int] = set()
    for _, layer, row in sorted(stretches, key=lambda each: -each[0]):
        moves_K = paths[layer].moves_K
        price = int(moves_K[row] - moves_K[rows[layer]])
        if layer in closed or price > left:
            closed.add(layer)  # what follows on this path costs more still
            continue
        rows[layer], left = row, left - price
    return rows


def _stretches(path: _Path) -> list[tuple[float, int]]:
    """The corners of the lower hull of peak over moves, up to those of the goal: (peak saved per move, row
    reached), steepest first."""
    corners: list[tuple[float, int]] = []
    row, goal = 0, len(path.moves_K) - 1
    is_fewer_K = path.moves_K < path.moves_K[goal]
    is_fewer_K[goal] = True
    while True:
        is_later_K = (path.moves_K > path.moves_K[row]) & (path.peak_K < path.peak_K[row])
        later = np.flatnonzero(is_later_K & is_fewer_K)
        if not len(later):
            return corners
        saved = path.peak_K[row] - path.peak_K[later]
        slopes = saved / (path.moves_K[later] - path.moves_K[row])
        best = int(slopes.argmax())
        row = int(later[best])
        corners.append((float(slopes[best]), row))
