"""The split of tokens over replicas under which the hottest rank carries least."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array, frozen
from isotherm.jit import kernel
from isotherm.placement import Placement
from isotherm.planner.layers.load_kernels import make_layer
from isotherm.topology import Topology


def balanced_shares(heat_LE: FloatArray | Int64Array, placement: Placement, topology: Topology) -> FloatArray:
    """Shares float64 [layers, slots] that minimise the load of the hottest rank in each layer, then that of
    the next, and so on: the loads are as even as the placement allows.

    Exact up to rounding (see `level_kernels` for the method). Experts without heat are split evenly.
    """
    shares_LP = np.zeros(placement.slot_to_expert.shape)
    divide_layers(
        # Read-only, as a request's is: another type of array would be compiled for, in the middle of serving.
        frozen(heat_LE, np.float64),
        placement.slot_to_expert.astype(np.int64),
        topology.ranks,
        shares_LP,
    )
    return shares_LP


@kernel
def divide_layers(heat_LE: FloatArray, slot_expert_LP: Int64Array, ranks: int, shares_LP: FloatArray) -> None:
    """Writes balanced shares; even ones for experts without heat."""
    for row in range(len(heat_LE)):
        mean = heat_LE[row].sum() / ranks
        unit_E = heat_LE[row] / (mean if mean > 0.0 else 1.0)
        layer = make_layer(slot_expert_LP[row], unit_E, ranks, True)
        for expert in range(len(layer.expert_E)):
            slot, total = layer.expert_E[expert]["first"], 0.0
            while slot >= 0:
                total += layer.slot_P[slot]["tokens"]
                slot = layer.slot_P[slot]["next"]
            slot = layer.expert_E[expert]["first"]
            while slot >= 0:
                even = 1.0 / layer.expert_E[expert]["count"]
                shares_LP[row, slot] = layer.slot_P[slot]["tokens"] / total if total > 0.0 else even
                slot = layer.slot_P[slot]["next"]
