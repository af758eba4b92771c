"""The default policy: from what is, one change at a time, while a change helps."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.planner.bounds import imbalance_bound
from isotherm.planner.fresh import from_nothing
from isotherm.planner.request import PlanRequest
from isotherm.planner.search_kernels import WEIGHTS, search_layer

NEAR_BOUND = {"even": 1e-2, "balanced": 1e-3}
"""A placement from nothing is good enough within this part of its lower bound. With even shares a search
finds next to nothing after packing and trading, and takes ten times as long."""

PERFECT = 1 + 1e-9
"""No layer at or below this is searched: what is above 1 may be rounding."""


@dataclass(frozen=True, eq=False)
class _Path:
    """What the search found for one layer: each row a placement, the first what it began with.

    ``peak_K`` is the hottest rank's load, and ``goal`` what it is to come down to, in the unit of heat;
    ``moves_K`` the slots that differ from the first row.
    """

    slot_to_expert_KP: Int64Array
    peak_K: FloatArray
    moves_K: Int64Array
    goal: float


def place_incremental(request: PlanRequest) -> Int64Array:
    """Slots to experts, int64 [layers, slots], near to what the slots hold now.

    Each layer above ``max_imbalance`` changes the slot, or swaps the two slots, that takes most away from
    the ranks above it, counting the shares that then serve it, until no change takes enough away; changes
    that the target does not need are then taken back. Within ``max_moves`` the changes that lower the sum
    of the hottest ranks most per move come first, over all layers.

    Where nothing is loaded yet the way begins at replicas packed greedily, with slots traded while that
    helps (with two slots a rank and balanced shares, at trees of ranks where those are better), and ends
    within ``NEAR_BOUND`` of the lower bound.

    Raises:
        ValueError: groups were asked for, which this policy does not keep on their nodes.
    """
    if request.groups > 1:
        raise ValueError(
            f"groups={request.groups}: policy 'incremental' does not keep groups on their nodes; choose "
            "policy='deepseek', or leave groups out"
        )
    near_L = imbalance_bound(request.heat_LE, request.topology) * (1 + NEAR_BOUND[request.shares])

    def search(layer: int) -> _Path:
        heat_E, target = request.heat_LE[layer], request.max_imbalance
        if request.current is not None:
            return _search(request, heat_E, request.current.slot_to_expert[layer].astype(np.int64), target)
        return _search(request, heat_E, from_nothing(request, heat_E), max(target, near_L[layer]))

    if request.threads == 1 or request.layers == 1:
        paths = [search(layer) for layer in range(request.layers)]
    else:
        with ThreadPoolExecutor(request.threads, "isotherm-plan") as pool:
            paths = list(pool.map(search, range(request.layers)))
    if request.max_moves is None:
        rows = [_row_to_take(path, request.current is not None) for path in paths]
    else:
        rows = _affordable(paths, request.max_moves)
    return np.stack([path.slot_to_expert_KP[row] for path, row in zip(paths, rows, strict=True)])


def _search(request: PlanRequest, heat: FloatArray, start_P: Int64Array, target: float) -> _Path:
    ranks, slots = request.topology.ranks, request.topology.slots
    mean = float(heat.sum()) / ranks
    if mean <= 0:
        return _Path(start_P[None], np.zeros(1), np.zeros(1, np.int64), 0.0)
    target = max(target, PERFECT)
    limit = slots if request.max_moves is None else min(slots, request.max_moves)
    room = (limit + 2) * len(WEIGHTS)
    slot_to_expert_KP, peak_K = np.empty((room, slots), np.int64), np.empty(room)
    balanced, frugal = request.shares == "balanced", request.current is not None
    rows = search_layer(start_P, heat / mean, ranks, balanced, target, frugal, slot_to_expert_KP, peak_K)
    slot_to_expert_KP = slot_to_expert_KP[:rows].copy()
    moves_K = (slot_to_expert_KP != start_P).sum(axis=1)
    return _Path(slot_to_expert_KP, peak_K[:rows] * mean, moves_K, target * mean)


def _row_to_take(path: _Path, frugal: bool) -> int:
    """The row with the lowest peak, or, if ``frugal``, with the fewest moves of those within the goal; the
    first of equals."""
    within_K = path.peak_K <= path.goal
    if frugal and within_K.any():
        return int(np.where(within_K, path.moves_K, len(path.slot_to_expert_KP[0]) + 1).argmin())
    return int(path.peak_K.argmin())


def _affordable(paths: list[_Path], max_moves: int) -> list[int]:
    """The rows to take within the budget: stretches of the paths, the steepest first."""
    rows, left = [0] * len(paths), max_moves
    stretches = [(slope, layer, row) for layer, path in enumerate(paths) for slope, row in _stretches(path)]
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
    """The corners of the lower hull of peak over moves: (peak saved per move, row reached), steepest
    first."""
    corners: list[tuple[float, int]] = []
    row = 0
    while True:
        later = np.flatnonzero((path.moves_K > path.moves_K[row]) & (path.peak_K < path.peak_K[row]))
        if not len(later):
            return corners
        saved = path.peak_K[row] - path.peak_K[later]
        slopes = saved / (path.moves_K[later] - path.moves_K[row])
        best = int(slopes.argmax())
        row = int(later[best])
        corners.append((float(slopes[best]), row))
