"""Traces served again offline: what the balancer would have done, and whether balancing pays. No torch."""

from isotherm.replay.cluster import EXPERT_BYTES, Cluster
from isotherm.replay.report import ReplayReport, ReplayWindow
from isotherm.replay.virtual_time import replay_trace
from isotherm.replay.yardstick import REPLAN_STEPS, CompetitionTime

__all__ = [
    "EXPERT_BYTES",
    "REPLAN_STEPS",
    "Cluster",
    "CompetitionTime",
    "ReplayReport",
    "ReplayWindow",
    "replay_trace",
]
