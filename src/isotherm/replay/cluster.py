"""The cluster that a replay imagines, and what time costs there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.config import Config
from isotherm.planner.outlook.price import StepTime
from isotherm.topology import Topology

EXPERT_BYTES = 88_080_384
"""Weights of one expert of DeepSeek-V3 in one layer, in 16 bits: 3 matrices of 7,168 x 2,048."""


@dataclass(frozen=True)
class Cluster:
    """Ranks and nodes, links, and a step of the engine in two numbers.

    Attributes:
        topology: ranks, nodes and slots.
        expert_bytes: the weights of one expert in one layer.
        link_bytes_per_second: into one rank from another node.
        node_bytes_per_second: into one rank from a rank of its own node.
        step: how long a step takes; None: not known.

    Raises:
        ValueError: a number that is not above 0.
    """

    topology: Topology
    expert_bytes: int = EXPERT_BYTES
    link_bytes_per_second: float = 25e9
    node_bytes_per_second: float = 450e9
    step: StepTime | None = None

    def __post_init__(self) -> None:
        for name in ("expert_bytes", "link_bytes_per_second", "node_bytes_per_second"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name}={value} must be a number above 0")

    def configured(self, config: Config) -> Config:
        """``config`` with this cluster's link, and its step where it is known."""
        config = replace(config, link_bytes_per_second=self.link_bytes_per_second)
        if self.step is None:
            return config
        return replace(config, step_ms=self.step.step_ms, expert_share=self.step.expert_share)

    def saved_seconds(self, steps: int, unbalanced: float, imbalance: float) -> float | None:
        """What so many steps save where the imbalance is ``imbalance``, not ``unbalanced``; negative where it
        rose. None where the step is not known."""
        return None if self.step is None else self.step.saved_ms(unbalanced - imbalance, steps) / 1e3

    def move_seconds(self, target_M: Int64Array, source_M: Int64Array) -> float:
        """How long the busiest rank receives, when slots ``target_M`` are filled from slots ``source_M``.
        Copies within a rank are free."""
        if not len(target_M):
            return 0.0
        size, per_node = self.topology.slots_per_rank, self.topology.ranks_per_node
        to_M, from_M = target_M // size, source_M // size
        within_M = to_M // per_node == from_M // per_node
        speed_M = np.where(within_M, self.node_bytes_per_second, self.link_bytes_per_second)
        seconds_M: FloatArray = np.where(to_M == from_M, 0.0, self.expert_bytes / speed_M)
        return float(np.bincount(to_M, seconds_M).max())
