"""Policies to compare with: what is, and chance."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.placement import Placement
from isotherm.planner.request import PlanRequest
from isotherm.topology import MoEShape

_SEED = 20_240_601


def start_of(request: PlanRequest) -> Placement:
    """What the slots hold now; where nothing is loaded, slot ``p`` holds expert ``p % experts``."""
    if request.current is not None:
        return request.current
    return Placement.default(MoEShape(request.layers, request.experts, 1), request.topology)


def place_static(request: PlanRequest) -> Int64Array:
    """Leaves every slot as it is."""
    return start_of(request).slot_to_expert.astype(np.int64)


def place_random(request: PlanRequest) -> Int64Array:
    """Replicas as even in number as can be, on ranks drawn by chance, the same draw on every call."""
    rng = np.random.Generator(np.random.PCG64(_SEED))
    experts, topology = request.experts, request.topology
    rows = []
    for _ in range(request.layers):
        # Each expert's replicas are dealt to ranks in turn, so no rank gets two while slots <= experts.
        order_E = rng.permutation(experts)
        count_E = np.bincount(np.arange(topology.slots) % experts, minlength=experts)
        dealt_SG = np.repeat(order_E, count_E).reshape(topology.slots_per_rank, topology.ranks)
        rows.append(dealt_SG.T[rng.permutation(topology.ranks)].ravel())
    return np.stack(rows)
