"""Isotherm: balances the experts of an expert-parallel Mixture-of-Experts engine while it serves.

Offline (plans, placements, heat and its files) needs the base install alone. `Balancer` and `HeatCollector`
need torch; they, and what reads and writes files, are imported when first asked for.
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
from isotherm.placement import EMPTY, Move, Placement, Plan, Refill, Rounds
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
    from isotherm.traces import (
        HeatHeader,
        HeatRecorder,
        HeatSpec,
        HeatTrace,
        HeatWriter,
        PlacementFile,
        read_heat,
        read_placement,
        record_to,
        synthesize,
        write_placement,
    )

__version__ = "0.1.0"

__all__ = [
    "EMPTY",
    "KINDS",
    "Balancer",
    "Config",
    "HeatCollector",
    "HeatHeader",
    "HeatRecorder",
    "HeatSpec",
    "HeatTrace",
    "HeatWindow",
    "HeatWriter",
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
    "PlacementFile",
    "Plan",
    "PlanRefusedError",
    "ProtocolError",
    "Refill",
    "Rounds",
    "State",
    "Statistics",
    "StreamError",
    "Topology",
    "layer_imbalance",
    "overall_imbalance",
    "plan",
    "read_heat",
    "read_placement",
    "record_to",
    "synthesize",
    "write_placement",
]

_WHEN_ASKED_FOR = {
    "Balancer": "isotherm.balancer",
    "HeatCollector": "isotherm.heat",
    "HeatHeader": "isotherm.traces",
    "HeatRecorder": "isotherm.traces",
    "HeatSpec": "isotherm.traces",
    "HeatTrace": "isotherm.traces",
    "HeatWriter": "isotherm.traces",
    "PlacementFile": "isotherm.traces",
    "read_heat": "isotherm.traces",
    "read_placement": "isotherm.traces",
    "record_to": "isotherm.traces",
    "synthesize": "isotherm.traces",
    "write_placement": "isotherm.traces",
}


def __getattr__(name: str) -> Any:
    if name not in _WHEN_ASKED_FOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(_WHEN_ASKED_FOR[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtraError("torch", "torch") from error
