"""Isotherm: balances the experts of an expert-parallel Mixture-of-Experts engine while it serves.

Offline (plans, placements, heat) needs numpy and numba alone. `Balancer` and `HeatCollector` need torch;
they are imported when first asked for.
"""

from typing import TYPE_CHECKING, Any

from isotherm.config import Config, Mode
from isotherm.errors import (
    IsothermError,
    LinkError,
    MissingExtraError,
    PeerFailedError,
    PeerMismatchError,
    PlanRefusedError,
    ProtocolError,
    StreamError,
)
from isotherm.placement import EMPTY, Move, Placement, Plan
from isotherm.planner import plan
from isotherm.status import Memory, State, Statistics
from isotherm.topology import MoEShape, Topology
from isotherm.window import (
    KINDS,
    HeatWindow,
    ImbalanceSummary,
    layer_imbalance,
    overall_imbalance,
)

if TYPE_CHECKING:
    from isotherm.balancer import Balancer
    from isotherm.heat import HeatCollector

__version__ = "0.1.0"

__all__ = [
    "EMPTY",
    "KINDS",
    "Balancer",
    "Config",
    "HeatCollector",
    "HeatWindow",
    "ImbalanceSummary",
    "IsothermError",
    "LinkError",
    "Memory",
    "MissingExtraError",
    "MoEShape",
    "Mode",
    "Move",
    "PeerFailedError",
    "PeerMismatchError",
    "Placement",
    "Plan",
    "PlanRefusedError",
    "ProtocolError",
    "State",
    "Statistics",
    "StreamError",
    "Topology",
    "layer_imbalance",
    "overall_imbalance",
    "plan",
]

_NEEDS_TORCH = {
    "Balancer": "isotherm.balancer",
    "HeatCollector": "isotherm.heat",
}


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(_NEEDS_TORCH[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("torch", "torch") from error
