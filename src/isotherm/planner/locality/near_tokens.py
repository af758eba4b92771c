"""Placements with which few pairs cross nodes: from nothing, and from what is loaded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.placement import Placement
from isotherm.planner.locality.anew import place_layer_near
from isotherm.planner.locality.search_kernels import LEAST_GAIN, new_logs, search_near
from isotherm.planner.locality.shares import peaks_within, sources_by_layer
from isotherm.planner.policy.incremental import place_incremental
from isotherm.planner.request import PlanRequest


def place_near_tokens(request: PlanRequest) -> Int64Array:
    """Slots to experts, int64 [layers, slots]: as `place_incremental`, and then nearer to the tokens.

    Balance comes first: no layer's hottest rank carries more than in the placement that `place_incremental`
    gives, or than ``locality_slack`` allows (`peaks_within`). From nothing, layers are placed anew where that
    keeps more pairs near (`place_layer_near`). From what is loaded, redundant slots are given to other
    experts and slots of two nodes trade places, the layers first that gain most, as far as ``max_moves``
    goes.

    Raises:
        ValueError: as `place_incremental`.
    """
    assert request.source_heat_NLE is not None
    assert request.locality_slack is not None
    placed_LP = place_incremental(request)
    source_LNE = sources_by_layer(request.source_heat_NLE)
    placement = Placement(placed_LP.astype(np.int32), request.experts)
    peak_L = peaks_within(source_LNE.sum(axis=1), placement, request.topology, request.locality_slack)
    if request.current is None:
        return _place(request, placed_LP, source_LNE, peak_L)
    most = placed_LP.size if request.max_moves is None else request.max_moves
    most -= int((placed_LP != request.current.slot_to_expert).sum())
    _bring_near(request.topology.ranks, placed_LP, source_LNE, peak_L, most)
    return placed_LP


def _place(
    request: PlanRequest, placed_LP: Int64Array, source_LNE: FloatArray, peak_L: FloatArray
) -> Int64Array:
    """The layers placed anew, on the request's threads."""
    ranks = request.topology.ranks

    def place(row: int) -> Int64Array:
        return place_layer_near(placed_LP[row], source_LNE[row], ranks, float(peak_L[row]))

    with ThreadPoolExecutor(request.threads, "isotherm-plan") as pool:
        return np.stack(list(pool.map(place, range(request.layers))))


def _bring_near(
    ranks: int, placed_LP: Int64Array, source_LNE: FloatArray, peak_L: FloatArray, most: int
) -> None:
    """Changes at most ``most`` slots of ``placed_LP``, those changes first that gain most for each."""
    logs = []
    for row_P, source_NE, peak in zip(placed_LP, source_LNE, peak_L, strict=True):
        log_X4, gain_X = _search(ranks, row_P.copy(), source_NE, float(peak), most)
        logs.append((log_X4, gain_X / np.where(log_X4[:, 2] < 0, 1, 2)))
    done = [0] * len(logs)
    while True:
        gains = [gain_X[n] if n < len(gain_X) else 0.0 for n, (_, gain_X) in zip(done, logs, strict=True)]
        layer = int(np.argmax(gains))
        if gains[layer] <= 0.0:
            return
        slot, expert, back, other = logs[layer][0][done[layer]]
        price = 1 if back < 0 else 2
        if price > most:
            return
        placed_LP[layer, slot] = expert
        if back >= 0:
            placed_LP[layer, back] = other
        done[layer], most = done[layer] + 1, most - price


def _search(
    ranks: int, row_P: Int64Array, source_NE: FloatArray, peak: float, most: int
) -> tuple[Int64Array, FloatArray]:
    """The changes that bring one layer nearer, and the pairs each gains, in the unit of heat."""
    log_X4, gain_X = new_logs(min(most, 2 * len(row_P)))
    mean = float(source_NE.sum()) / ranks
    if mean <= 0:
        return log_X4[:0], gain_X[:0]
    n = search_near(row_P, source_NE / mean, ranks, peak / mean, LEAST_GAIN * ranks, log_X4, gain_X)
    return log_X4[:n], gain_X[:n] * mean
