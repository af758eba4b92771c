"""One placement for several heats: none of them may be served badly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.placement import Plan
from isotherm.window import layer_imbalance, overall_imbalance

_ROUNDS = 4
_RATE = 10.0


def plan_for_worst(
    weights: Sequence[FloatArray],
    make: Callable[[FloatArray], Plan],
    serve: Callable[[int, Plan], FloatArray],
) -> Plan:
    """Of the plans tried, the one under which the worst served of several heats is served best.

    Args:
        weights: of each heat, what its experts add to the load of an only replica, float64 [layers, experts].
        make: the plan for such weights.
        serve: loads float64 [layers, ranks] of the heat of that place under a plan's placement, with the best
            shares for that heat: shares follow traffic from window to window, weights stay.

    One heat has one plan. Of several, each alone is tried, and mixtures in which, layer by layer, those that
    are served worst gain weight (multiplicative weights; Arora, Hazan and Kale 2012). The search itself knows
    one heat at a time, so this is no proof that nothing is better.
    """
    if len(weights) == 1:
        return make(weights[0])
    part_CLE = np.stack([_per_layer(weight_LE) for weight_LE in weights])
    weight_CL = np.ones(part_CLE.shape[:2])
    tried: list[tuple[float, Plan]] = []

    def attempt(weight_LE: FloatArray) -> list[FloatArray]:
        plan = make(weight_LE)
        load_CLG = [serve(place, plan) for place in range(len(weights))]
        tried.append((max(map(overall_imbalance, load_CLG)), plan))
        return load_CLG

    for each_LE in weights:
        attempt(each_LE)
    for _ in range(_ROUNDS):
        load_CLG = attempt(np.einsum("cl,cle->le", weight_CL, part_CLE))
        weight_CL *= np.exp(_RATE * np.stack([layer_imbalance(load_LG) for load_LG in load_CLG]))
        weight_CL /= weight_CL.sum(axis=0)
    return min(tried, key=lambda each: each[0])[1]


def _per_layer(heat_LE: FloatArray) -> FloatArray:
    total_L1 = heat_LE.sum(axis=1, keepdims=True)
    out_LE: FloatArray = np.divide(heat_LE, total_L1, out=np.zeros_like(heat_LE), where=total_L1 > 0)
    return out_LE
