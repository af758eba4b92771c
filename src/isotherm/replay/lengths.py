"""Which window: a short one is noisy, a long one late."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from isotherm.planner.outlook.price import StepTime
from isotherm.planner.served.dispatch import Engine
from isotherm.replay.cluster import Cluster
from isotherm.replay.side_by_side import PolicyRow, serve_policy
from isotherm.replay.windows import rewindowed
from isotherm.window import HeatWindow

MULTIPLES = (1, 2, 4, 8, 16)
_LEAST_WINDOWS = 3


@dataclass(frozen=True)
class LengthRow:
    """A trace in windows of one length.

    Attributes:
        steps: the length.
        windows: how many there are.
        forecast_error: the part of the tokens that went to other experts than in the window before.
        balancedness, worst_balancedness: median and least of the windows served.
        moves_per_1000_steps: slots changed.
        fall: by what part the work of the hottest ranks falls, over all steps served, net of moves.
    """

    steps: int
    windows: int
    forecast_error: float
    balancedness: float
    worst_balancedness: float
    moves_per_1000_steps: float
    fall: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def try_lengths(
    policy: str, windows: Sequence[HeatWindow], cluster: Cluster, engine: Engine, first: PolicyRow
) -> tuple[LengthRow, ...]:
    """The trace in windows of its own length and of multiples of it, as long as three windows are left.

    ``first``: what the policy reached with its own length.
    """
    rows = []
    for multiple in MULTIPLES:
        if len(windows) // multiple < _LEAST_WINDOWS:
            break
        joined = list(rewindowed(windows, multiple * windows[0].steps)) if multiple > 1 else list(windows)
        if len(joined) < _LEAST_WINDOWS:
            break
        served = first if multiple == 1 else serve_policy(policy, joined, cluster, engine)
        rows.append(_row(joined, served, cluster.step))
    return tuple(rows)


def best_length(rows: Sequence[LengthRow]) -> LengthRow | None:
    """The one with which the work of the hottest ranks falls furthest; of equals the shortest."""
    return max(rows, key=lambda row: (row.fall, -row.steps), default=None)


def _row(windows: Sequence[HeatWindow], served: PolicyRow, step: StepTime | None) -> LengthRow:
    errors = [_moved_part(before, after) for before, after in pairwise(windows)]
    return LengthRow(
        steps=windows[0].steps,
        windows=len(windows),
        forecast_error=float(np.mean(errors)),
        balancedness=served.balancedness,
        worst_balancedness=served.worst_balancedness,
        moves_per_1000_steps=1000 * served.moves / sum(window.steps for window in served.windows),
        fall=served.mean_fall(step),
    )


def _moved_part(before: HeatWindow, after: HeatWindow) -> float:
    """The part of the tokens of a layer that other experts have in ``after``; mean over layers."""
    parts = []
    for window in (before, after):
        heat_LE = window.heat_LE.astype(np.float64)
        parts.append(heat_LE / np.maximum(heat_LE.sum(axis=1, keepdims=True), 1))
    return float(np.abs(parts[1] - parts[0]).sum(axis=1).mean() / 2)
