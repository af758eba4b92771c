"""The moments of a run that the demo compares: shares first, then moves."""

from dataclasses import dataclass

import numpy as np

from isotherm.demo.engine import RankRecord
from isotherm.demo.result import find_phases, first_moved


@dataclass
class Decided:
    step: int
    action: str


def record(steps):
    received_NL = np.ones((steps, 2), np.int64)
    seconds_N = np.full(steps, 0.01)
    return RankRecord(received_NL, seconds_N, 2 * seconds_N, seconds_N, (), None)


def spans(publications, decisions, shift=64, end=128):
    moved = first_moved(decisions, publications, shift, end)
    phases = find_phases([record(end), record(end)], publications, moved, shift, end, 12)
    return {phase.name: (phase.first_step, phase.first_step + phase.steps) for phase in phases}


def test_new_shares_stand_between_the_shift_and_the_first_move():
    """Shares at 73; moves decided at 84, whose slots are retired at 85 and used from 88 on."""
    decisions = [Decided(12, "moves"), Decided(72, "shares"), Decided(84, "moves"), Decided(96, "nothing")]
    assert spans([13, 16, 19, 73, 85, 88, 91], decisions) == {
        "before balancing": (0, 13),
        "balanced": (52, 64),
        "just after the shift": (64, 73),
        "new shares alone": (73, 88),
        "shift answered": (116, 128),
    }


def test_moves_at_once_come_with_new_shares_that_act_first():
    found = spans([13, 16, 73, 77, 80], [Decided(12, "moves"), Decided(72, "moves")])
    assert found["just after the shift"] == (64, 73)
    assert found["new shares alone"] == (73, 77)


def test_a_run_that_moves_nothing_after_the_shift_is_answered_by_shares():
    found = spans([13, 73], [Decided(12, "moves"), Decided(72, "shares")])
    assert "new shares alone" not in found
    assert found["shift answered"] == (116, 128)


def test_an_answer_that_comes_late_is_not_told_of_before_it():
    found = spans([13, 110, 121], [Decided(108, "moves")])
    assert found["new shares alone"] == (110, 121)
    assert found["shift answered"] == (121, 128)
    assert spans([], []) == {"before balancing": (0, 64), "just after the shift": (64, 128)}


def test_without_a_shift_there_is_nothing_to_answer():
    assert first_moved([Decided(12, "moves")], [13, 16], None, 40) is None
    assert set(spans([13, 16], [Decided(12, "moves")], shift=None, end=40)) == {
        "before balancing",
        "balanced",
    }
