"""The shares with which a placement will be served."""

from __future__ import annotations

from isotherm.arrays import FloatArray
from isotherm.placement import Placement
from isotherm.planner.layers.shares import balanced_shares
from isotherm.planner.locality.shares import near_shares
from isotherm.planner.request import PlanRequest
from isotherm.planner.served.dispatch import rule_of, served_shares, source_parts


def settled_shares(request: PlanRequest, placement: Placement) -> FloatArray:
    """Float64 [layers, slots]: what the engine's rule gives, or the best there are where it is ours."""
    split = rule_of(request.engine).split
    if split is not None:
        source_LEN = source_parts(request.source_heat_NLE, request.heat_LE.shape, request.topology.nodes)
        return served_shares(placement, request.topology, split, source_LEN)
    if request.locality_slack is not None and request.source_heat_NLE is not None:
        return near_shares(request.source_heat_NLE, placement, request.topology, request.locality_slack)
    if request.shares == "even":
        return placement.even_shares()
    return balanced_shares(request.heat_LE, placement, request.topology)
