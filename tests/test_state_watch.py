"""Which seconds a deadline counts: those in which the engine makes steps."""

from types import SimpleNamespace

import numpy as np
import pytest

from isotherm import State
from isotherm.control import Limits, Seen, Watch, state_watch

LIMITS = Limits(
    planning_steps=10,
    moving_steps=10,
    backoff_steps=8,
    longest_backoff_steps=8,
    stalled_steps=1000,
    planning_seconds=30.0,
    moving_seconds=30.0,
    stalled_seconds=5.0,
)


class Rank:
    """One rank, whose engine and clock are moved by hand."""

    def __init__(self):
        self.now, self.steps = 1000.0, 0
        self.watch = Watch(
            LIMITS, rank=0, step=lambda: self.steps, call_off=lambda: None, on_round=lambda: None
        )

    def run(self, seconds, steps_per_second):
        """A round in each tenth of a second."""
        before = self.steps
        for tenth in range(round(10 * seconds)):
            self.now += 0.1
            self.steps = before + int((tenth + 1) * steps_per_second / 10)
            self.watch.act(np.array([self.watch.header()]), None)


@pytest.fixture
def rank(monkeypatch):
    made = []
    clock = SimpleNamespace(monotonic=lambda: made[0].now if made else 1000.0, time=lambda: 0.0)
    monkeypatch.setattr(state_watch, "time", clock)
    made.append(Rank())
    return made[0]


@pytest.mark.parametrize("seen", [Seen.PLANNING, Seen.AIMED])
def test_an_engine_that_stood_still_is_late_when_it_has_run_for_as_long(rank, seen):
    rank.watch.see(seen)
    rank.run(10, 2)  # all the steps that it may take, and a third of the time
    rank.run(600, 0)
    assert rank.watch.failures.total == 0
    rank.run(1, 100)
    assert rank.watch.failures.total == 0
    rank.run(12, 2)
    assert rank.watch.failures.total == 0
    rank.run(8, 2)
    assert rank.watch.failures.total == 1
    assert rank.watch.life.state in (State.DEGRADED, State.OBSERVING)


def test_slow_steps_are_no_standstill(rank):
    rank.watch.see(Seen.AIMED)
    rank.run(29, 0.5)
    assert rank.watch.failures.total == 0
    rank.run(4, 0.5)
    assert rank.watch.failures.transfer_late == 1
