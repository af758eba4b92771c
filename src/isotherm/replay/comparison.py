"""All that `isotherm compare` finds out about a trace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from isotherm.planner import policies
from isotherm.planner.advice import Advice, advise
from isotherm.planner.outlook.price import StepTime
from isotherm.planner.served.dispatch import Engine, rule_of
from isotherm.replay.cluster import Cluster
from isotherm.replay.lengths import LengthRow, best_length, try_lengths
from isotherm.replay.side_by_side import PolicyRow, serve_policy
from isotherm.replay.verdict import Verdict, judge
from isotherm.window import HeatWindow

Tracked = Callable[[Sequence[str], str], Iterable[str]]
"""Gives the items back one by one, and shows how far it is."""


@dataclass(frozen=True)
class Comparison:
    """Policies side by side, and the answers.

    Attributes:
        engine: who serves. policy: the one that the verdict and the lengths are about.
        windows: windows in the trace; 1: one matrix, and each plan served the heat that it was made on.
        rows: a policy each. lengths: windows of other lengths; none for one matrix.
        step: how long a step takes; None: not known.
        advice: how many redundant slots, for the heat of all windows.
    """

    engine: Engine
    policy: str
    windows: int
    rows: tuple[PolicyRow, ...]
    lengths: tuple[LengthRow, ...]
    verdict: Verdict
    step: StepTime | None
    advice: Advice

    @property
    def chosen(self) -> PolicyRow:
        """The row of ``policy``."""
        return next(row for row in self.rows if row.policy == self.policy)

    @property
    def step_fall(self) -> float:
        """By what part steps become shorter with ``policy``, moves not counted. Where the step is not known,
        an upper bound: as if it were all work of the hottest ranks."""
        if self.step is None:
            return self.chosen.mean_fall(None)
        served = self.chosen.windows
        before = sum(window.steps * self.step.at(window.unbalanced) for window in served)
        after = sum(window.steps * self.step.at(window.imbalance) for window in served)
        return 1 - after / before

    def as_dict(self) -> dict[str, Any]:
        best = best_length(self.lengths)
        return {
            "engine": self.engine,
            "policy": self.policy,
            "windows": self.windows,
            "served": "the window planned on" if self.windows == 1 else "the window after",
            "answer": self.verdict.answer,
            "verdict": asdict(self.verdict),
            "step_time": {"falls_by": self.step_fall, "is_upper_bound": self.step is None},
            "policies": [row.as_dict() for row in self.rows],
            "window_lengths": [row.as_dict() for row in self.lengths],
            "best_window_steps": None if best is None else best.steps,
            "redundancy": {
                "advised": self.advice.redundant,
                "reason": self.advice.reason,
                "rows": [asdict(row) for row in self.advice.rows],
                "needed_per_layer": self.advice.needed_L.tolist(),
            },
        }


def compare_policies(
    windows: Sequence[HeatWindow],
    cluster: Cluster,
    *,
    engine: Engine = "isotherm",
    policy: str = "incremental",
    tracked: Tracked = lambda items, doing: items,
) -> Comparison:
    """Plans with every policy on each window, and serves the next as the engine would.

    Args:
        windows: in the order of time, in memory. One alone is served by the plans that are made on it.
        policy: the one that the verdict is about.
        tracked: shows how far the work is.

    Raises:
        ValueError: an unknown policy or engine, or slots that do not hold the experts.
        PlanRefusedError: ``policy`` cannot plan here; the other policies may.
    """
    if policy not in policies():
        raise ValueError(f"policy={policy!r} is unknown: choose one of {', '.join(policies())}")
    alone = len(windows) == 1
    rows = tuple(
        serve_policy(name, windows, cluster, engine, itself=alone)
        for name in tracked(policies(), "comparing")
    )
    chosen = next(row for row in rows if row.policy == policy)
    chosen.check_planned()
    return Comparison(
        engine=engine,
        policy=policy,
        windows=len(windows),
        rows=rows,
        lengths=() if alone else try_lengths(policy, windows, cluster, engine, chosen),
        verdict=judge(chosen.windows, cluster.step, one_matrix=alone),
        step=cluster.step,
        advice=_advise(windows, cluster, engine),
    )


def _advise(windows: Sequence[HeatWindow], cluster: Cluster, engine: Engine) -> Advice:
    return advise(
        np.sum([window.heat_LE for window in windows], axis=0),
        cluster.topology.ranks,
        bytes_per_expert=cluster.expert_bytes,
        nodes=cluster.topology.nodes,
        shares="balanced" if rule_of(engine).split is None else "even",
        layer_ids=windows[0].layer_ids,
        threads=os.cpu_count() or 1,
    )
