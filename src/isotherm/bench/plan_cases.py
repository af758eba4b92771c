"""One kind of plan, made several times: what it reaches, moves and takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from isotherm.bench.figures import Figure
from isotherm.placement import Plan

EXPERT_BYTES = 44_040_192
"""One expert of DeepSeek-V3 in FP8: three matrices of 7,168 x 2,048."""
ENOUGH_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class Measured:
    """Plans of one kind: each as it was made, with the CPU time of all threads and the wall time of every
    run, in milliseconds."""

    row: str
    plans: tuple[Plan, ...]
    cpu_ms: tuple[float, ...]
    wall_ms: tuple[float, ...]

    @property
    def balance(self) -> np.ndarray:
        """Mean over hottest rank of each layer of each plan."""
        return np.concatenate([1 / plan.imbalance for plan in self.plans])

    @property
    def moved(self) -> float:
        """The part of all slots that change, in the plan that changes most."""
        return max(len(plan.moves) / plan.shares.size for plan in self.plans)

    def figures(self, *, moves: bool) -> list[Figure]:
        """A row of the table; with what moves where something is loaded already."""
        bound = np.concatenate([1 / plan.bound for plan in self.plans])
        row = [
            Figure.exact(self.row, "p50", "", float(np.median(self.balance))),
            Figure.exact(self.row, "mean", "", float(self.balance.mean())),
            Figure.exact(self.row, "worst layer", "", float(self.balance.min())),
            Figure.exact(self.row, "bound", "", float(bound.mean())),
        ]
        if moves:
            gigabytes = max(len(plan.moves) for plan in self.plans) * EXPERT_BYTES / 1e9
            row.append(Figure.exact(self.row, "slots changed", "%", 100 * self.moved))
            row.append(Figure.exact(self.row, "moved", "GB", gigabytes))
        row.append(Figure.of(self.row, "CPU", "ms", self.cpu_ms))
        row.append(Figure.of(self.row, "wall", "ms", self.wall_ms))
        return row


def measure_plans(row: str, makes: Sequence[Callable[[], Plan]], *, quick: bool) -> Measured:
    """Makes each plan several times, the first of which warms up, until half a second has gone by."""
    plans: list[Plan] = []
    cpu_ms: list[float] = []
    wall_ms: list[float] = []
    for make in makes:
        plans.append(make())
        for _ in range(1 if quick else max(3, 7 // len(makes))):
            cpu, wall = time.process_time(), time.perf_counter()
            make()
            cpu_ms.append(1e3 * (time.process_time() - cpu))
            wall_ms.append(1e3 * (time.perf_counter() - wall))
            if sum(wall_ms) > 1e3 * ENOUGH_SECONDS * len(makes):
                break
    return Measured(row, tuple(plans), tuple(cpu_ms), tuple(wall_ms))
