"""Whether the ranks make the same steps."""

from __future__ import annotations

import logging

import numpy as np

from isotherm.arrays import Int64Array

logger = logging.getLogger("isotherm")


class StepWatch:
    """Reads the steps that all ranks tell in each round, and names those that fall behind.

    A rank tells its step before it waits for the others, who may come a second later: what it tells is
    old by then. So it is compared with where the foremost was a round ago, which it told before this rank
    told anything. A rank that is named is truly behind.

    Args:
        lag_steps: how far a rank may be behind; 0: any distance.
    """

    def __init__(self, lag_steps: int) -> None:
        self._lag_steps = lag_steps
        self._foremost: tuple[int, int] | None = None  # rank, step, as told a round ago
        self.lagging: tuple[int, ...] = ()

    def see(self, steps_G: Int64Array) -> None:
        """Reads the steps of one round. Logs a WARNING for each rank that falls behind, once until it has
        caught up."""
        if self._lag_steps and self._foremost is not None:
            self._compare(steps_G, *self._foremost)
        rank = int(steps_G.argmax())
        self._foremost = rank, int(steps_G[rank])

    def see_end(self, steps_G: Int64Array) -> None:
        """Reads the steps with which all ranks closed. Logs one WARNING if they differ."""
        foremost = int(steps_G.argmax())
        behind = np.flatnonzero(steps_G != steps_G[foremost])
        if len(behind):
            logger.warning(
                "isotherm: %s, rank %d %d: every rank must end the same steps, dummy ones included",
                ", ".join(f"rank {rank} ended {steps_G[rank]} steps" for rank in behind),
                foremost,
                steps_G[foremost],
            )

    def _compare(self, steps_G: Int64Array, foremost: int, step: int) -> None:
        too_far = np.flatnonzero(steps_G < step - self._lag_steps).tolist()
        not_caught_up = [rank for rank in self.lagging if steps_G[rank] < step]
        for rank in set(too_far) - set(self.lagging):
            logger.warning(
                "isotherm: rank %d is at step %d where rank %d has passed step %d: heat of all ranks "
                "waits for it, and the engine does not",
                rank,
                steps_G[rank],
                foremost,
                step,
            )
        self.lagging = tuple(sorted({*too_far, *not_caught_up}))
