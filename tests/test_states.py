"""The states and their deadlines: every state with everything that can be seen."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isotherm import State
from isotherm.control import Life, Limits, Seen, next_life
from isotherm.control.states import is_overdue, retry_step

LIMITS = Limits(
    planning_steps=10, moving_steps=20, backoff_steps=8, longest_backoff_steps=50, stalled_steps=30
)

OBSERVING, PLANNING, MOVING, DEGRADED = State.OBSERVING, State.PLANNING, State.MOVING, State.DEGRADED

TABLE = {
    #                observing  planning   moving     degraded
    Seen.ROUND:     (OBSERVING, PLANNING,  MOVING,    DEGRADED),
    Seen.PLANNING:  (PLANNING,  PLANNING,  MOVING,    PLANNING),
    Seen.DECIDED:   (OBSERVING, OBSERVING, MOVING,    DEGRADED),
    Seen.AIMED:     (MOVING,    MOVING,    MOVING,    MOVING),
    Seen.PROGRESS:  (OBSERVING, PLANNING,  MOVING,    DEGRADED),
    Seen.SETTLED:   (OBSERVING, PLANNING,  OBSERVING, DEGRADED),
    Seen.GIVEN_UP:  (OBSERVING, OBSERVING, OBSERVING, DEGRADED),
    Seen.FAILED:    (DEGRADED,  DEGRADED,  DEGRADED,  DEGRADED),
    Seen.LOST:      (DEGRADED,  DEGRADED,  DEGRADED,  DEGRADED),
}  # fmt: skip


@pytest.mark.parametrize("seen", Seen)
@pytest.mark.parametrize("column", range(4))
def test_the_table(seen, column):
    state = (OBSERVING, PLANNING, MOVING, DEGRADED)[column]
    life = Life(state, since_step=100, clock_step=100, streak=2)
    after = next_life(life, seen, 103, LIMITS)
    assert after.state is TABLE[seen][column]
    assert after.since_step == (100 if after.state is state else 103)
    assert after.is_lost == (seen is Seen.LOST)
    assert after.streak == {
        Seen.FAILED: 3,
        Seen.LOST: 3,
        Seen.DECIDED: 2 if state is DEGRADED else 0,
        Seen.SETTLED: 2 if state is DEGRADED else 0,
    }.get(seen, 2)


def test_a_pause_after_a_failure_doubles_up_to_the_longest():
    life, pauses = Life(), []
    for step in range(0, 1000, 100):
        life = next_life(life, Seen.FAILED, step, LIMITS)
        pauses.append(retry_step(life, LIMITS) - step)
        before = next_life(life, Seen.ROUND, step + pauses[-1] - 1, LIMITS)
        assert before.state is DEGRADED
        life = next_life(life, Seen.ROUND, step + pauses[-1], LIMITS)
        assert life.state is OBSERVING
    assert pauses == [8, 16, 32, 50, 50, 50, 50, 50, 50, 50]
    assert next_life(life, Seen.DECIDED, 2000, LIMITS).streak == 0


def test_since_when_is_the_first_failure_and_the_pause_counts_from_the_last():
    life = next_life(Life(), Seen.FAILED, 5, LIMITS)
    life = next_life(life, Seen.FAILED, 9, LIMITS)
    assert (life.since_step, retry_step(life, LIMITS)) == (5, 9 + 16)


@pytest.mark.parametrize(("state", "steps"), [(PLANNING, 10), (MOVING, 20)])
def test_a_deadline_needs_its_steps_and_its_seconds(state, steps):
    life = Life(state, 100, 100)
    assert not is_overdue(life, 100 + steps, 1e9, LIMITS)  # an idle engine ages nothing
    assert not is_overdue(life, 100 + 10**6, 30.0, LIMITS)
    assert is_overdue(life, 101 + steps, 30.1, LIMITS)
    for other in (OBSERVING, DEGRADED):
        assert not is_overdue(replace(life, state=other), 10**6, 1e9, LIMITS)


def test_progress_moves_the_deadline_and_not_since_when():
    life = next_life(Life(MOVING, 100, 100), Seen.PROGRESS, 115, LIMITS)
    assert (life.since_step, life.clock_step) == (100, 115)
    assert not is_overdue(life, 135, 1e9, LIMITS)


@given(st.lists(st.tuples(st.sampled_from(sorted(Seen, key=str)), st.integers(0, 9)), max_size=40))
def test_whatever_is_seen_balancing_is_tried_again_unless_the_link_is_lost(story):
    life, step = Life(), 0
    for seen, steps in story:
        step += steps
        before, life = life, next_life(life, seen, step, LIMITS)
        assert life.clock_step >= life.since_step
        assert life == before or not before.is_lost
    later = next_life(life, Seen.ROUND, step + LIMITS.longest_backoff_steps, LIMITS)
    assert (later.state is DEGRADED) == life.is_lost


def test_limits_are_positive():
    with pytest.raises(ValueError, match="moving_steps=0 must be above 0"):
        replace(LIMITS, moving_steps=0)
    assert Limits.of_window(256, steps_per_move=40).moving_steps == 4 * 256 + 80
