"""From heat to a plan: bounds, search, shares, policies. numpy and numba only."""

from isotherm.planner.assemble import make_plan
from isotherm.planner.bounds import imbalance_bound
from isotherm.planner.layers.shares import balanced_shares
from isotherm.planner.offline import plan
from isotherm.planner.order.rounds import transient_imbalance
from isotherm.planner.policy.registry import Policy, get_policy, policies
from isotherm.planner.request import PlanRequest
from isotherm.planner.served.dispatch import Engine
from isotherm.planner.warm import warm_up

__all__ = [
    "Engine",
    "PlanRequest",
    "Policy",
    "balanced_shares",
    "get_policy",
    "imbalance_bound",
    "make_plan",
    "plan",
    "policies",
    "transient_imbalance",
    "warm_up",
]
