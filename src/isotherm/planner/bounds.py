"""How well any placement could do."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.planner.pack_kernels import list_replicas
from isotherm.topology import Topology


def imbalance_bound(heat_LE: FloatArray | Int64Array, topology: Topology) -> FloatArray:
    """Float64 [layers]: no placement with any shares has a lower imbalance; 1 for a layer without heat.

    A peak of ``t`` needs at least ``ceil(heat / t)`` replicas of each expert, since no two replicas on a
    rank help, and there are only so many slots. The smallest such ``t`` is what remains when every
    redundant slot goes to the expert with the most heat per replica.
    """
    bound_L = np.ones(len(heat_LE))
    for layer, heat in enumerate(np.asarray(heat_LE)):
        heat_E = np.array(heat, np.float64)
        mean = heat_E.sum() / topology.ranks
        if mean > 0:
            replica_P = list_replicas(heat_E, topology.slots, topology.ranks)
            replicas_E = np.bincount(replica_P, minlength=len(heat_E))
            bound_L[layer] = max(1.0, float((heat_E / replicas_E).max()) / mean)
    return bound_L
