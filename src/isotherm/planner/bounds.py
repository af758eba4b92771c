"""How well any placement could do."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array, frozen
from isotherm.jit import kernel
from isotherm.planner.fresh.pack_kernels import count_slots, list_replicas
from isotherm.topology import Topology

PARTS = np.arange(1, 17) / 32
"""What counts as little of a peak, for ranks with two slots: each is tried."""
NEAR_PARTS = np.arange(-7, 8) / 256
"""Tried next to the best of them."""
STRIDE, HALVINGS = 1.03, 20
"""A bound is raised in such strides, and the last one halved so often."""


def imbalance_bound(heat_LE: FloatArray | Int64Array, topology: Topology) -> FloatArray:
    """Float64 [layers]: no placement with any shares has a lower imbalance; 1 for a layer without heat.

    A peak of ``t`` needs at least ``ceil(heat / t)`` replicas of each expert, since no two replicas on a
    rank help, and there are only so many slots. The smallest such ``t`` is what remains when every
    redundant slot goes to the expert with the most heat per replica.

    With two slots a rank, what an expert gives to a slot is also weighed: by ``x / 2z`` what is less than
    ``z``, by a half what is from ``z`` to ``t - z``, by the rest of 1 to ``t - x`` what is more. Then the two
    slots of a rank weigh at most 1 together wherever they carry at most ``t``, for any ``z`` up to ``t / 2``;
    so all experts, each split as is lightest, must not weigh more than there are ranks. This is the dual
    of the linear program of all ways to fill a rank, with weights as in Fekete and Schepers (2001), "New
    classes of fast lower bounds for bin packing problems".
    """
    bound_L = np.ones(len(heat_LE))
    bound_layers(frozen(heat_LE, np.float64), topology.ranks, topology.slots_per_rank, bound_L)
    return bound_L


@kernel
def bound_layers(heat_LE: FloatArray, ranks: int, size: int, bound_L: FloatArray) -> None:
    for layer in range(len(heat_LE)):
        mean = heat_LE[layer].sum() / ranks
        if mean > 0.0:
            bound_L[layer] = lowest_peak(heat_LE[layer] / mean, ranks, size)


@kernel
def lowest_peak(heat_E: FloatArray, ranks: int, size: int) -> float:
    """No placement brings the peak below this; for heat of mean load 1."""
    count_E, low = count_slots(list_replicas(heat_E, ranks * size, ranks), len(heat_E)), 1.0
    for expert in range(len(heat_E)):
        low = max(low, heat_E[expert] / count_E[expert])
    if size != 2:
        return low
    best = 0.0
    for part in PARTS:
        raised = raise_peak(heat_E, ranks, part, low)
        if raised > low:
            low, best = raised, part
    if best > 0.0:
        for near in NEAR_PARTS:
            if best + near <= 0.5:
                low = raise_peak(heat_E, ranks, best + near, low)
    return low


@kernel
def raise_peak(heat_E: FloatArray, ranks: int, part: float, low: float) -> float:
    """The lowest peak, from ``low`` on, with which the pieces do not weigh more than there are ranks."""
    most = ranks * (1.0 + 1e-9)
    if weigh_pieces(heat_E, low, part) <= most:
        return low
    high = low * STRIDE
    while weigh_pieces(heat_E, high, part) > most:
        low, high = high, high * STRIDE
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if weigh_pieces(heat_E, middle, part) > most:
            low = middle
        else:
            high = middle
    return low


@kernel
def weigh_pieces(heat_E: FloatArray, peak: float, part: float) -> float:
    """What all experts weigh, each split into the pieces that weigh least together."""
    little, total = part * peak, 0.0
    for heat in heat_E:
        halves = np.floor(heat / (peak - little))
        total += halves / 2 + min(0.5, (heat - halves * (peak - little)) / (2 * little))
    return total
