"""Flash balancing: replicas and places decided together, for heat that varies over time."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.placement import rank_loads
from isotherm.planner.policy.baselines import start_of
from isotherm.planner.policy.flash_kernels import place_jointly
from isotherm.planner.request import PlanRequest
from isotherm.window import layer_imbalance


def place_flash(request: PlanRequest) -> Int64Array:
    """Slots to experts, int64 [layers, slots]; layers at or below ``max_imbalance`` stay as they are.

    Experts are taken in groups, hot to cold. For each group several numbers of replicas are tried, each
    followed by a greedy completion of the whole layer, and the best is kept. A rank counts as the mean of
    its load over the slices of heat and one standard deviation, so experts that are hot at the same time
    are kept apart; ``heat_SLE`` gives the slices, without it only the mean counts. Tokens are taken to
    split evenly, whatever ``shares`` says. The new ranks are handed to those that hold most of their
    experts already.

    Source: the description of FlashLB at https://github.com/vllm-project/vllm-ascend/pull/3042 (groups,
    tree search, mean and variance over parts of the window, layers left alone); of its tree, one branch is
    kept at each level here.
    """
    slices_SLE = request.heat_LE[None] if request.heat_SLE is None else request.heat_SLE
    still_L = np.zeros(request.layers, np.bool_)
    if request.current is not None:
        even_LP = request.current.even_shares()
        load_LG = rank_loads(request.heat_LE, request.current, even_LP, request.topology)
        still_L = layer_imbalance(load_LG) <= request.max_imbalance
    rows = [_place_layer(request, slices_SLE, layer, bool(still_L[layer])) for layer in range(request.layers)]
    return np.stack(rows)


def _place_layer(request: PlanRequest, slices_SLE: FloatArray, layer: int, still: bool) -> Int64Array:
    ranks, size = request.topology.ranks, request.topology.slots_per_rank
    heat_SE = slices_SLE[:, layer].copy()
    held_GS: Int64Array = start_of(request).slot_to_expert[layer].reshape(ranks, size).astype(np.int64)
    if still or not heat_SE.any():
        return held_GS.ravel()
    heat_E = heat_SE.sum(axis=0)
    new_GS = place_jointly(heat_SE, heat_E, np.argsort(-heat_E, kind="stable"), size, ranks)
    if request.current is None:
        return new_GS.ravel()
    nearest_GS: Int64Array = new_GS[_nearest_ranks(held_GS, new_GS, request.experts)]
    return nearest_GS.ravel()


def _nearest_ranks(held_GS: Int64Array, new_GS: Int64Array, experts: int) -> Int64Array:
    """Which of the new ranks each rank takes, int64 [ranks]: pairs with most experts in common first."""
    holds_2GE = np.zeros((2, len(held_GS), experts), np.float32)
    for holds_GE, expert_GS in zip(holds_2GE, (held_GS, new_GS), strict=True):
        rank, slot = np.nonzero(expert_GS >= 0)
        holds_GE[rank, expert_GS[rank, slot]] = 1
    common_GG = holds_2GE[0] @ holds_2GE[1].T
    taken_G = np.zeros(len(held_GS), np.int64)
    for _ in range(len(held_GS)):
        rank, new = np.unravel_index(common_GG.argmax(), common_GG.shape)
        taken_G[rank] = new
        common_GG[rank], common_GG[:, new] = -1, -1
    return taken_G
