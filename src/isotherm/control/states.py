"""What the balancer does next: the one function from what happened to a state.

Everything in here is seen by all ranks in the same round, so the states of all ranks are equal after equal
rounds. Deadlines count steps, so that an idle engine ages nothing, and seconds too, so that an engine whose
steps take a millisecond does not call a plan of a second late. None of them is the group's time-out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from isotherm.status import State


class Seen(Enum):
    """What a round has shown to every rank."""

    ROUND = "a round was made"
    PLANNING = "rank 0 began to plan"
    DECIDED = "rank 0 decided, and no weight is to move"
    AIMED = "a plan with moves was taken on"
    PROGRESS = "slots were retired, filled or published"
    SETTLED = "every slot holds what the plan wants"
    GIVEN_UP = "what was under way is called off, though nothing failed"
    FAILED = "something failed, and what was under way is called off"
    LOST = "the link is broken: there are no more rounds over it"


@dataclass(frozen=True)
class Limits:
    """How long a state may last without progress, and how long to wait before trying again.

    A deadline has passed when both its steps and its seconds have: ``planning`` from the beginning of an
    attempt, ``moving`` from the last progress. After the n-th failure in a row nothing is tried for
    ``backoff_steps * 2**(n - 1)`` steps, at most ``longest_backoff_steps``. Rounds stand still when this rank
    made ``stalled_steps`` in ``stalled_seconds`` since the last.

    Raises:
        ValueError: a number that is not positive.
    """

    planning_steps: int
    moving_steps: int
    backoff_steps: int
    longest_backoff_steps: int
    stalled_steps: int
    planning_seconds: float = 30.0
    moving_seconds: float = 30.0
    stalled_seconds: float = 5.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}={value} must be above 0")

    @classmethod
    def of_window(cls, window_steps: int, *, steps_per_move: int = 0) -> Limits:
        """Limits that grow with the window. ``steps_per_move``: what the budget takes for one expert."""
        return cls(
            planning_steps=4 * window_steps,
            moving_steps=4 * window_steps + 2 * steps_per_move,
            backoff_steps=window_steps,
            longest_backoff_steps=64 * window_steps,
            stalled_steps=window_steps,
        )


@dataclass(frozen=True)
class Life:
    """The state of a balancer.

    Attributes:
        since_step: the step at which it began.
        clock_step: the step from which its deadline, or the pause after a failure, counts.
        streak: failures since something last went well.
        is_lost: there are no more rounds, so nothing changes any more, unless the link is made anew.
    """

    state: State = State.OBSERVING
    since_step: int = 0
    clock_step: int = 0
    streak: int = 0
    is_lost: bool = False


_NEXT = {
    (State.OBSERVING, Seen.PLANNING): State.PLANNING,
    (State.OBSERVING, Seen.AIMED): State.MOVING,
    (State.PLANNING, Seen.DECIDED): State.OBSERVING,
    (State.PLANNING, Seen.AIMED): State.MOVING,
    (State.MOVING, Seen.SETTLED): State.OBSERVING,
    (State.PLANNING, Seen.GIVEN_UP): State.OBSERVING,
    (State.MOVING, Seen.GIVEN_UP): State.OBSERVING,
    # Asked for by hand, without waiting for the pause to end.
    (State.DEGRADED, Seen.PLANNING): State.PLANNING,
    (State.DEGRADED, Seen.AIMED): State.MOVING,
}
"""Where a state is left without a failure; what is not in here changes no state."""

_WENT_WELL = (Seen.DECIDED, Seen.SETTLED)


def next_life(life: Life, seen: Seen, step: int, limits: Limits) -> Life:
    """What follows from ``seen`` at ``step``, which every rank has ended. A pure function."""
    if life.is_lost:
        return life
    if seen in (Seen.FAILED, Seen.LOST):
        life = replace(life, streak=life.streak + 1, clock_step=step, is_lost=seen is Seen.LOST)
        return _enter(life, State.DEGRADED, step)
    if life.state is State.DEGRADED and seen is Seen.ROUND and step >= retry_step(life, limits):
        return _enter(life, State.OBSERVING, step)
    if seen in _WENT_WELL and life.state is not State.DEGRADED:
        life = replace(life, streak=0)
    if seen in (Seen.PROGRESS, Seen.AIMED) and life.state is State.MOVING:
        life = replace(life, clock_step=step)
    return _enter(life, _NEXT.get((life.state, seen), life.state), step)


def retry_step(life: Life, limits: Limits) -> int:
    """The step at which a degraded balancer tries again."""
    doublings = min(life.streak - 1, 62)
    return life.clock_step + min(limits.backoff_steps << doublings, limits.longest_backoff_steps)


def is_overdue(life: Life, step: int, seconds: float, limits: Limits) -> bool:
    """Whether the deadline of the state has passed: ``seconds`` since ``life.clock_step``."""
    if life.state is State.PLANNING:
        return step - life.clock_step > limits.planning_steps and seconds > limits.planning_seconds
    if life.state is State.MOVING:
        return step - life.clock_step > limits.moving_steps and seconds > limits.moving_seconds
    return False


def _enter(life: Life, state: State, step: int) -> Life:
    if state is life.state:
        return life
    return replace(life, state=state, since_step=step, clock_step=step)
