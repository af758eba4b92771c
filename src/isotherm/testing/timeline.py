"""What happened, in order, as text; and where in a program's source it was asked for."""

from __future__ import annotations

import functools
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

NOT_THE_PROGRAM = frozenset(
    f"isotherm.{name}"
    for name in (
        "streams.host",
        "streams.worker",
        "streams.completion",
        "testing.audit",
        "testing.capture",
        "testing.collectives",
        "testing.device",
        "testing.launch",
        "testing.memory",
        "testing.operators",
        "testing.queues",
        "testing.races",
        "testing.simulated",
        "testing.simulated_streams",
        "testing.storages",
        "testing.tensors",
        "testing.timeline",
        "testing.watched",
    )
)
"""Modules that stand between a program and the detector: findings do not point at them."""

KEPT_MOMENTS = 10_000


@dataclass(frozen=True)
class Moment:
    """Something was enqueued, ran, waited or was found."""

    lane: str
    verb: str
    label: str
    site: str


class Timeline:
    """The newest moments of a run."""

    def __init__(self) -> None:
        self.moments: deque[Moment] = deque(maxlen=KEPT_MOMENTS)

    def note(self, lane: str, verb: str, label: str, site: str = "") -> None:
        self.moments.append(Moment(lane, verb, label, site))

    def text(self, last: int = 60) -> str:
        """One line a moment, oldest first: who, what, where it was asked for."""
        shown = list(self.moments)[-last:]
        first = len(self.moments) - len(shown)
        width = max((len(moment.lane) for moment in shown), default=0)
        return "\n".join(
            f"{number:5}  {moment.lane:{width}}  {moment.verb:8}  {moment.label}"
            + (f"  ({moment.site})" if moment.site else "")
            for number, moment in enumerate(shown, first)
        )


def site_of_caller(*, beyond: str = "the program") -> str:
    """``file:line`` of the innermost frame that is the program's own, and ``beyond`` this package."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        is_program = module not in NOT_THE_PROGRAM and module.partition(".")[0] not in ("torch", "contextlib")
        if is_program and not module.startswith(f"{beyond}."):
            file = frame.f_code.co_filename.replace("\\", "/")
            return f"{'/'.join(file.split('/')[-2:])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "unknown"


def label_of(work: Callable[[], None]) -> str:
    """The name of work in findings."""
    if isinstance(work, functools.partial):
        return label_of(work.func)
    name: str = getattr(work, "__qualname__", type(work).__qualname__)
    return name.replace(".<locals>", "")
