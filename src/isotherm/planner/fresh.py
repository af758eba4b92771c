"""A layer from nothing: where each expert and each replica goes when moves are free."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.planner.forest_kernels import plant
from isotherm.planner.load_kernels import balanced_peak
from isotherm.planner.pack_kernels import list_replicas, pack, separate, trade
from isotherm.planner.request import PlanRequest
from isotherm.topology import Topology

LEVELS = (1.0, 1.1, 1.2, 1.3)
"""Loads, in units of the mean, for which trees of ranks with two slots are planted; the best is taken."""


def from_nothing(request: PlanRequest, heat: FloatArray) -> Int64Array:
    """One layer from nothing: packed, or, with balanced shares and two slots a rank, planted where that is
    better."""
    ranks, heat_E = request.topology.ranks, np.array(heat)
    packed_P = _pack(heat_E, request.topology)
    two_slots = request.topology.slots_per_rank == 2 and request.experts > ranks
    if request.shares == "even" or not two_slots or not heat_E.any():
        return packed_P
    level = heat_E.sum() / ranks
    rows = [packed_P, *(plant(heat_E / (level * part), ranks) for part in LEVELS)]
    return min(rows, key=lambda row_P: balanced_peak(row_P, heat_E, ranks))


def _pack(heat: FloatArray, topology: Topology) -> Int64Array:
    """One layer from nothing, as good as even shares are brought quickly."""
    heat_E = np.array(heat)
    replica_P = list_replicas(heat_E, topology.slots, topology.ranks)
    weight_E = heat_E / np.bincount(replica_P, minlength=len(heat_E))
    expert_GS = replica_P[pack(weight_E[replica_P], topology.ranks)]
    if topology.slots_per_rank <= len(heat_E):
        separate(expert_GS, weight_E)
    trade(expert_GS, weight_E, heat_E.sum() / topology.ranks)
    return expert_GS.ravel()
