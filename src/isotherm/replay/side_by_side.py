"""Policies side by side: planned on one window, served on the next, as an engine would serve them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np

from isotherm.arrays import Int32Array
from isotherm.errors import PlanRefusedError
from isotherm.placement import Move, Placement, Plan
from isotherm.planner import plan
from isotherm.planner.outlook.price import StepTime
from isotherm.planner.served.dispatch import Engine, rule_of
from isotherm.replay.cluster import Cluster
from isotherm.replay.serving import InForce, serve_window
from isotherm.topology import MoEShape, Topology
from isotherm.window import HeatWindow


@dataclass(frozen=True)
class ServedWindow:
    """One window, served by what was planned on the one before.

    Attributes:
        steps: its length.
        imbalance: the sum over layers of the hottest rank over the sum of the means.
        unbalanced: the same, had nothing ever been planned.
        moves: slots that the plan changed. moving_seconds: how long the busiest rank received for that.
    """

    steps: int
    imbalance: float
    unbalanced: float
    moves: int
    moving_seconds: float

    def fall(self, step: StepTime | None) -> float:
        """By what part the work of the hottest ranks falls, net of the time of the moves; negative where it
        rises. Where the step is not known, moves are taken to cost nothing."""
        fall = 1 - self.imbalance / self.unbalanced
        if step is None:
            return fall
        work_seconds = self.steps * step.step_ms * step.expert_share * self.unbalanced / 1e3
        return fall - self.moving_seconds / work_seconds


@dataclass(frozen=True)
class PolicyRow:
    """A policy over a trace.

    Attributes:
        windows: each but the first of the trace; none where it refused.
        slots: slots in all layers.
        plan_seconds: median time to make a plan.
        refused: why the policy cannot plan here; None where it can.
    """

    policy: str
    windows: tuple[ServedWindow, ...]
    slots: int
    plan_seconds: float = 0.0
    refused: str | None = None

    @property
    def balancedness(self) -> float:
        """Mean load over that of the hottest rank, the median of the windows."""
        return float(np.median([1 / window.imbalance for window in self.windows]))

    @property
    def worst_balancedness(self) -> float:
        return min(1 / window.imbalance for window in self.windows)

    @property
    def moved_part(self) -> float:
        """The part of all slots that a plan changes, mean over plans."""
        return float(np.mean([window.moves for window in self.windows])) / self.slots

    @property
    def moves(self) -> int:
        return sum(window.moves for window in self.windows)

    @property
    def moving_seconds(self) -> float:
        return sum(window.moving_seconds for window in self.windows)

    def mean_fall(self, step: StepTime | None) -> float:
        """What `ServedWindow.fall` is over all steps."""
        weights = [window.steps for window in self.windows]
        return float(np.average([window.fall(step) for window in self.windows], weights=weights))

    def check_planned(self) -> None:
        """Raises PlanRefusedError where the policy cannot plan here."""
        if self.refused is not None:
            raise PlanRefusedError(self.refused)

    def as_dict(self) -> dict[str, Any]:
        named = ("balancedness", "worst_balancedness", "moved_part", "moves", "moving_seconds")
        return {
            "policy": self.policy,
            "refused": self.refused,
            "plan_seconds": self.plan_seconds,
            **({} if self.refused else {name: getattr(self, name) for name in named}),
            "windows": [asdict(window) for window in self.windows],
        }


def loaded_placement(window: HeatWindow, cluster: Cluster) -> Placement:
    """What slots hold where nothing was ever planned: slot ``p`` expert ``p % experts``.

    Raises:
        ValueError: there are fewer slots than experts.
    """
    layers, experts = window.heat_LE.shape
    return Placement.default(MoEShape(layers, experts, 1), cluster.topology)


def serve_policy(
    policy: str, windows: Sequence[HeatWindow], cluster: Cluster, engine: Engine, *, itself: bool = False
) -> PolicyRow:
    """Plans on each window, from what the plan before left, and serves the next with it.

    ``itself``: serves each window with the plan that was made on it, as if one knew what comes.

    Raises:
        ValueError: an unknown policy or engine, or slots that do not hold the experts.
    """
    _compile(policy, engine)
    start = loaded_placement(windows[0], cluster)
    current, seconds, rows = start, [], []
    try:
        for planned_on, window in zip(windows, windows if itself else windows[1:]):
            begun = time.perf_counter()
            made = plan(planned_on, cluster.topology, current, engine=engine, policy=policy)
            seconds.append(time.perf_counter() - begun)
            rows.append(_served(made, current, window, start, cluster, engine))
            current = made.placement
    except PlanRefusedError as error:
        return PolicyRow(policy, (), start.slot_to_expert.size, refused=str(error))
    return PolicyRow(policy, tuple(rows), start.slot_to_expert.size, float(np.median(seconds)))


@cache
def _compile(policy: str, engine: Engine) -> None:
    """Plans something small first: compiling is no part of the time that a plan takes."""
    topology = Topology(ranks=2, slots_per_rank=3)
    with suppress(PlanRefusedError):
        plan([[40, 30, 20, 1]], topology, [[0, 1, 2, 3, 0, 1]], engine=engine, policy=policy)


def _served(
    made: Plan, current: Placement, window: HeatWindow, start: Placement, cluster: Cluster, engine: Engine
) -> ServedWindow:
    spans = {
        "planned": InForce(window.start_step, window.end_step, made.placement, made.shares),
        "loaded": InForce(
            window.start_step, window.end_step, start, _untouched(window, start, cluster, engine)
        ),
    }
    served = {name: serve_window(window, [span], cluster.topology).overall for name, span in spans.items()}
    return ServedWindow(
        steps=window.steps,
        imbalance=served["planned"],
        unbalanced=served["loaded"],
        moves=len(made.moves),
        moving_seconds=_moving_seconds(made, current, cluster),
    )


def _untouched(window: HeatWindow, start: Placement, cluster: Cluster, engine: Engine) -> np.ndarray:
    """How the engine splits tokens over what is loaded, without any plan."""
    if rule_of(engine).split is None:
        return start.even_shares()
    return plan(window, cluster.topology, start, engine=engine, policy="static").shares


def _moving_seconds(made: Plan, current: Placement, cluster: Cluster) -> float:
    """How long the busiest rank receives, each slot filled from the nearest that held its expert."""
    targets = np.array([move.slot for move in made.moves], np.int64)
    sources = [_nearest(move, current.slot_to_expert[move.layer], cluster) for move in made.moves]
    return cluster.move_seconds(targets, np.array(sources, np.int64))


def _nearest(move: Move, held_P: Int32Array, cluster: Cluster) -> int:
    """The slot that held the expert: on the same rank, else on the same node, else the lowest."""
    slots = np.flatnonzero(held_P == move.expert)
    size, per_node = cluster.topology.slots_per_rank, cluster.topology.ranks_per_node
    rank, ranks = move.slot // size, slots // size
    far = (ranks != rank) * 1 + (ranks // per_node != rank // per_node) * 1
    return int(slots[far.argmin()])
