"""What a replay found: a row per window, and what they add up to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from isotherm.decide import Action
from isotherm.replay.yardstick import CompetitionTime


@dataclass(frozen=True)
class ReplayWindow:
    """One window: how it was served, and what was decided after it.

    Attributes:
        start_step, end_step: its steps are ``start_step <= step < end_step``.
        imbalance: the sum over layers of the hottest rank over the sum of the means, by what was in force.
        par: the mean over layers and time of max / mean.
        unbalanced: what ``imbalance`` would be had nothing ever changed.
        moves: slots that were filled or began to be, in its steps.
        moving_seconds: how long the busiest rank received for that.
        saved_seconds: time of steps against nothing ever changed; None where the step is not known.
        action, reason: what was decided when it had ended.
    """

    start_step: int
    end_step: int
    imbalance: float
    par: float
    unbalanced: float
    moves: int
    moving_seconds: float
    saved_seconds: float | None
    action: Action
    reason: str

    @property
    def steps(self) -> int:
        return self.end_step - self.start_step


@dataclass(frozen=True)
class ReplayReport:
    """A replay of at least one window.

    Attributes:
        policy: how moves were planned.
        expert_bytes: what a move weighs.
        windows: in the order of time.
        yardstick: the same trace under DeepSeek's balancer; None where it never came to a plan, or was not
            asked for.
    """

    policy: str
    expert_bytes: int
    windows: tuple[ReplayWindow, ...]
    yardstick: CompetitionTime | None = None

    @property
    def steps(self) -> int:
        return sum(window.steps for window in self.windows)

    @property
    def moves(self) -> int:
        return sum(window.moves for window in self.windows)

    @property
    def moved_bytes(self) -> int:
        return self.moves * self.expert_bytes

    @property
    def moving_seconds(self) -> float:
        return sum(window.moving_seconds for window in self.windows)

    @property
    def saved_seconds(self) -> float | None:
        saved = [window.saved_seconds for window in self.windows if window.saved_seconds is not None]
        return sum(saved) if saved else None

    @property
    def imbalance(self) -> float:
        """The mean over steps."""
        return self._mean("imbalance")

    @property
    def unbalanced(self) -> float:
        return self._mean("unbalanced")

    @property
    def time(self) -> CompetitionTime:
        return CompetitionTime(self._mean("par"), self.moves)

    @property
    def score(self) -> float | None:
        """100 x the yardstick's time / this one's: above 100 is better than DeepSeek's balancer."""
        return None if self.yardstick is None else 100 * self.yardstick.seconds / self.time.seconds

    def count(self, action: Action) -> int:
        """How many windows ended in ``action``."""
        return sum(window.action == action for window in self.windows)

    def as_dict(self) -> dict[str, Any]:
        totals = (
            "steps",
            "moves",
            "moved_bytes",
            "moving_seconds",
            "saved_seconds",
            "imbalance",
            "unbalanced",
        )
        yardstick = None
        if self.yardstick is not None:
            yardstick = {**asdict(self.yardstick), "seconds": self.yardstick.seconds}
        return {
            "policy": self.policy,
            "expert_bytes": self.expert_bytes,
            **{name: getattr(self, name) for name in totals},
            "decisions": {name: self.count(name) for name in ("nothing", "shares", "moves")},
            "score": self.score,
            "competition": {**asdict(self.time), "seconds": self.time.seconds},
            "yardstick": yardstick,
            "windows": [asdict(window) for window in self.windows],
        }

    def _mean(self, name: str) -> float:
        values = [getattr(window, name) for window in self.windows]
        return float(np.average(values, weights=[window.steps for window in self.windows]))
