"""One line in the log for each plan: what it found, what it promised, and what came of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

logger = logging.getLogger("isotherm")


@dataclass(frozen=True)
class Promise:
    """What is said of a plan when it is made: imbalance over all layers, ``moved_bytes`` over all ranks."""

    step: int
    before: float
    promised: float
    moves: int
    moved_bytes: int
    reason: str


@dataclass(frozen=True)
class _Line:
    promise: Promise
    settled_step: int | None = None


class PlanLog:
    """Follows the plan that rank 0 announced until a window was served by it, and then writes its line: at
    INFO where weights move, at DEBUG for shares alone, which change window by window. On other ranks it
    knows of no plan, and writes nothing. On the heartbeat's thread."""

    def __init__(self) -> None:
        self._line: _Line | None = None
        self._number = 0

    def announce(self, promise: Promise) -> None:
        """Rank 0 made a plan. One before it, whose window has not ended, gets its line now."""
        self._write("not measured: another plan came first")
        self._line = _Line(promise)

    def accept(self, step: int, *, is_settled: bool) -> None:
        """The plan is taken on; ``is_settled``: it moves nothing."""
        self._number += 1
        if is_settled:
            self.settle(step)

    def settle(self, step: int) -> None:
        """All of it is published."""
        if self._line is not None:
            self._line = replace(self._line, settled_step=step)

    def see_window(self, start_step: int, end_step: int, imbalance: float) -> None:
        """A window had this imbalance: what the plan achieved, if most of its steps were served by it."""
        settled = None if self._line is None else self._line.settled_step
        if settled is not None and 2 * (end_step - settled) >= end_step - start_step:
            self._write(f"{imbalance:.3f}")

    def call_off(self) -> None:
        """The plan is given up, unless all of it is published."""
        if self._line is not None and self._line.settled_step is None:
            self._write("nothing: it was called off")

    def close(self) -> None:
        """The balancer is closed: a plan whose window has not ended gets its line now."""
        self._write("not measured: the balancer was closed first")

    def _write(self, achieved: str) -> None:
        line, self._line = self._line, None
        if line is None:
            return
        promise = line.promise
        logger.log(
            logging.INFO if promise.moves else logging.DEBUG,
            "isotherm: plan %d of step %d: imbalance %.3f, promised %.3f, achieved %s; %d moves, %.1f MB: %s",
            self._number,
            promise.step,
            promise.before,
            promise.promised,
            achieved,
            promise.moves,
            promise.moved_bytes / 1e6,
            promise.reason,
        )
