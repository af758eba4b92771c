"""The score of a public competition: a policy's time against that of DeepSeek's balancer, on one trace."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.placement import Placement
from isotherm.planner import PlanRequest, get_policy
from isotherm.replay.serving import InForce, serve_window
from isotherm.topology import Topology
from isotherm.window import HeatWindow

REPLAN_STEPS = 1024
_SECONDS = 60.0
_SLOT_SECONDS = 88_080_384 / 900e9


@dataclass(frozen=True)
class CompetitionTime:
    """60 s times the mean over layers and time of max / mean, and the time that the changed slots take."""

    par: float
    changed_slots: int

    @property
    def seconds(self) -> float:
        return _SECONDS * self.par + self.changed_slots * _SLOT_SECONDS


class Yardstick:
    """DeepSeek's balancer, which replans every 1,024 steps on the heat since it last did, from nothing each
    time. Replicas split evenly, and a plan is in force at once.

    Until the first plan the slots hold ``placement``.
    """

    def __init__(self, placement: Placement, topology: Topology) -> None:
        self._placement, self._topology = placement, topology
        self._shares_LP = placement.even_shares()
        self._heat_LE: FloatArray = np.zeros((placement.layers, placement.experts))
        self._steps = self._seen_steps = 0
        self._par_steps = 0.0
        self._changed = 0

    def add(self, window: HeatWindow) -> None:
        """Serves a window, and replans after it where 1,024 steps or more have passed."""
        span = InForce(window.start_step, window.end_step, self._placement, self._shares_LP)
        self._par_steps += serve_window(window, [span], self._topology).par * window.steps
        self._seen_steps += window.steps
        self._heat_LE += window.heat_LE
        self._steps += window.steps
        if self._steps >= REPLAN_STEPS and self._heat_LE.any():
            self._replan()

    def _replan(self) -> None:
        request = PlanRequest(self._heat_LE, self._topology, self._placement, shares="even")
        goal = Placement(get_policy("deepseek")(request), self._placement.experts)
        self._changed += int((goal.slot_to_expert != self._placement.slot_to_expert).sum())
        self._placement, self._shares_LP = goal, goal.even_shares()
        self._heat_LE[:] = 0
        self._steps = 0

    @property
    def replanned(self) -> bool:
        return bool(self._changed)

    def time(self) -> CompetitionTime:
        return CompetitionTime(self._par_steps / self._seen_steps, self._changed)
