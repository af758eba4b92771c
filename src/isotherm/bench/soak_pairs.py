"""What goes wrong, and in which state: what cannot be, what was met, and what is to be met next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import get_args

import numpy as np

from isotherm.status import State
from isotherm.testing.faults import What

CALM = "nothing"
RELOADED = "weights replaced"
SLOW_LINK = "slow link"
DAWDLING = "slow rank"
MISHAPS = (*get_args(What), RELOADED, SLOW_LINK, DAWDLING, CALM)
"""What a round is about."""

_NEVER: dict[str, tuple[tuple[State, ...], str]] = {
    "planner raises": ((State.MOVING,), "nobody plans while weights move"),
    "planner hangs": ((State.MOVING,), "nobody plans while weights move"),
    "wrong digest": ((State.MOVING,), "no plan is announced while weights move"),
    "transfer late": (
        (State.OBSERVING, State.PLANNING, State.DEGRADED),
        "all weights of a round begin at once, while they move; what follows is what being late leads to",
    ),
}
"""Pairs that cannot be, and why. A transfer that is late may fail in any state."""


def draw_mishaps(seed: int) -> Iterator[str]:
    """What goes wrong round by round: all of `MISHAPS` in a random order, and then again in another."""
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(np.array(MISHAPS)).tolist()


def states_of(mishap: str) -> tuple[State, ...]:
    """The states in which it can happen."""
    never = _NEVER.get(mishap, ((), ""))[0]
    return tuple(state for state in State if state not in never and mishap != CALM)


def why_never() -> str:
    """The pairs that cannot be, and why, as a sentence each."""
    return " ".join(
        f"{mishap} while {', '.join(state.value for state in states)}: {reason}."
        for mishap, (states, reason) in _NEVER.items()
    )


class Pairs:
    """How often each mishap met each state, the same on every rank.

    Those that were met least come next; which of several is drawn once, from ``seed``.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 2])
        self._order = {mishap: rng.permutation(len(State)).tolist() for mishap in MISHAPS}
        self._met: Counter[tuple[str, State]] = Counter()

    def next_state(self, mishap: str) -> State | None:
        """The state in which it is to happen now; None where nothing happens."""
        order, states = self._order[mishap], tuple(State)
        waiting = [states[index] for index in order if states[index] in states_of(mishap)]
        return min(waiting, key=lambda state: self._met[mishap, state], default=None)

    def count(self, mishap: str, state: State) -> None:
        """It met ``state``."""
        self._met[mishap, state] += 1
