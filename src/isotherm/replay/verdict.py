"""Would balancing pay here? One rule, and its answer in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from isotherm.planner.outlook.price import StepTime
from isotherm.replay.side_by_side import ServedWindow

Answer = Literal["yes", "no", "not enough data"]

LEAST_FALL = 0.05
"""The work of the hottest ranks must fall by this part in a window for balancing to pay in it,"""

LEAST_PART = 0.8
"""and it must pay in this part of the windows,"""

LEAST_WINDOWS = 2
"""of which there must be so many."""


@dataclass(frozen=True)
class Verdict:
    """The answer, and why.

    Attributes:
        paying: windows in which balancing pays. windows: those that were served by a plan of the one before.
        reason: in words.
    """

    answer: Answer
    paying: int
    windows: int
    reason: str


def judge(served: Sequence[ServedWindow], step: StepTime | None, *, one_matrix: bool = False) -> Verdict:
    """Yes if, planned on one window and served on the next, the work of the hottest ranks falls by 5 % or
    more, net of the time of moves, in 80 % or more of at least two windows. Without ``step``, moves cost
    nothing.

    ``one_matrix``: the trace has one window, and nothing was served on a next one.
    """
    if one_matrix:
        return Verdict(
            "not enough data", 0, 0, "one matrix: no drift is visible, so no plan can be put to the test"
        )
    paying = sum(window.fall(step) >= LEAST_FALL for window in served)
    if len(served) < LEAST_WINDOWS:
        reason = (
            f"only {len(served)} window could be served by a plan of the one before, and {LEAST_WINDOWS} are "
            "needed: record for longer, or choose shorter windows"
        )
        return Verdict("not enough data", paying, len(served), reason)
    net = "net of move time" if step is not None else "moves not counted"
    reason = (
        f"the work of the hottest ranks falls by {LEAST_FALL:.0%} or more ({net}) in {paying} of "
        f"{len(served)} windows, and {LEAST_PART:.0%} of them are asked for"
    )
    pays = paying >= LEAST_PART * len(served)
    return Verdict("yes" if pays else "no", paying, len(served), reason)
