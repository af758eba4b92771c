"""The split of tokens over replicas under which the hottest rank carries least."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.placement import Placement, expert_sums
from isotherm.planner.load_kernels import make_layer
from isotherm.topology import Topology


def balanced_shares(heat_LE: FloatArray | Int64Array, placement: Placement, topology: Topology) -> FloatArray:
    """Shares float64 [layers, slots] that minimise the load of the hottest rank in each layer.

    Each expert in turn is poured over its ranks like water, until a round changes nothing (1e-9 of the
    mean load). That descends the sum of the squared loads, which is convex and has one constraint per
    expert, so it ends at its minimum; there no flow can lower the highest rank. Experts without heat are
    split evenly.
    """
    tokens_LP = np.zeros(placement.slot_to_expert.shape)
    for layer, row_P in enumerate(placement.slot_to_expert.astype(np.int64)):
        heat_E = np.array(heat_LE[layer], np.float64)
        mean = heat_E.sum() / topology.ranks
        if mean > 0:
            tokens_LP[layer] = make_layer(row_P, heat_E / mean, topology.ranks, True).tokens_P
    safe_LP = np.maximum(placement.slot_to_expert, 0).astype(np.int64)
    total_LP = np.take_along_axis(expert_sums(placement, tokens_LP), safe_LP, axis=1)
    served_LP = (total_LP > 0) & (placement.slot_to_expert >= 0)
    return np.divide(tokens_LP, total_LP, out=placement.even_shares(), where=served_LP)
