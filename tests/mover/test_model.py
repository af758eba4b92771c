"""No order of steps, rounds, late and failed transfers lets a token reach a slot without its expert."""

from dataclasses import replace

import numpy as np
import pytest
from model import Node, explore

from isotherm.mover import ledger as transitions
from isotherm.mover.ledger import Phase
from isotherm.mover.mover import Mover

THERE, BACK = (0, 1, 0), (1, 1, 0)


@pytest.mark.parametrize(
    "case",
    [
        {"goals": (THERE,)},
        {"goals": (THERE,), "call_offs": 1, "in_one": True, "depth": 2},
        {"goals": (THERE,), "failures": 1, "in_one": True},
        {"goals": (THERE, BACK), "replacements": 1, "in_one": True},
        {"goals": (THERE,), "cuts": 1, "in_one": True},
    ],
    ids=[
        "every order of tellings and actings",
        "called off, two steps deep",
        "a write fails",
        "replaced under way",
        "the link breaks",
    ],
)
def test_every_state_is_right(case):
    explored = explore(**case)
    assert explored.found is None
    assert explored.has_arrived
    assert explored.states > 100


class Hurried(Node):
    """Does not wait until its steps by the older tables are done."""

    def finished(self):
        return self.staged.epoch, 1


def test_a_slot_that_is_filled_before_every_rank_has_finished_with_it_is_found():
    found = explore(goals=(THERE,), in_one=True, node=Hurried).found
    assert found is not None
    assert "sends to slot 2" in found


def test_a_slot_that_is_published_before_it_has_arrived_is_found(monkeypatch):
    real = Mover.header

    def header(mover):
        epoch, steps, _, failed, turns = real(mover)
        return epoch, steps, mover._carrier.started, failed, turns

    monkeypatch.setattr(Mover, "header", header)
    assert explore(goals=(THERE,), in_one=True).found is not None


def test_a_failed_write_that_is_published_is_found(monkeypatch):
    monkeypatch.setattr(Mover, "_check_failures", lambda mover, failures_G: None)
    assert explore(goals=(THERE,), failures=1, in_one=True).found is not None


def test_a_slot_that_was_called_off_and_is_used_again_at_once_is_found(monkeypatch):
    real = transitions.called_off

    def called_off(ledger, rules, step):
        after = real(ledger, rules, step)
        if ledger.phase is not Phase.FILLING:
            return after
        content, _ = transitions.written(ledger, None)
        return replace(after, content=content, shares=np.array([[1.0, 0.5, 0.5]]))

    monkeypatch.setattr(transitions, "called_off", called_off)
    assert explore(goals=(THERE,), call_offs=1, in_one=True).found is not None
