"""Compiles the kernels of this room, or loads them from numba's cache."""

from __future__ import annotations

import numpy as np

from isotherm.placement import Placement
from isotherm.planner.assemble import make_plan
from isotherm.planner.locality.shares import near_shares
from isotherm.planner.request import PlanRequest
from isotherm.planner.served.read_kernels import choose_replicas
from isotherm.topology import Topology


def warm_up(*, near: bool = False) -> None:
    """Makes the first plans of the process, from nothing and from a placement, so that the next one takes no
    longer than any other; with ``near`` also shares that prefer near replicas. Seconds where nothing is
    cached yet."""
    topology = Topology(ranks=2, slots_per_rank=2)
    heat_LE = np.array([[4.0, 2.0, 1.0]])
    current = Placement(np.array([[0, 0, 1, 2]]), 3)  # two moves away from balance, of which one is granted
    for policy in ("incremental", "deepseek"):
        make_plan(PlanRequest(heat_LE, topology, current, max_imbalance=1.0), policy=policy)
    make_plan(PlanRequest(heat_LE, topology, current, max_imbalance=1.0, max_moves=1))
    make_plan(PlanRequest(heat_LE, topology, max_imbalance=1.0))
    if near:
        near_shares(heat_LE[None], current, topology, slack=0.0)
    choose_replicas(heat_LE, current.slot_to_expert.astype(np.int64), topology.ranks, np.empty((1, 4)))
