"""No order of steps, rounds, transfers and broken steps lets ranks or slots differ from what a step needs."""

from dataclasses import replace

import pytest
from word_model import WordNode, WordWorld, explore_words

from isotherm.errors import ProtocolError
from isotherm.mover import agreed
from isotherm.mover.ledger import Phase
from isotherm.mover.mover import Mover

PAIR, SWAPPED = (0, 1), (1, 0)


@pytest.mark.parametrize(
    "case",
    [
        {"goals": (SWAPPED,), "depth": 1, "in_one": False},
        {"goals": (SWAPPED,), "depth": 2, "breaks": 1},
        {"goals": (SWAPPED,), "depth": 1, "call_offs": 1, "failures": 1, "breaks": 1},
        {"goals": (SWAPPED, PAIR), "depth": 0, "replacements": 1, "breaks": 1},
        {"goals": (SWAPPED, PAIR), "depth": 0, "cuts": 1},
    ],
    ids=[
        "every order of tellings and actings",
        "steps break off",
        "called off, a write fails",
        "replaced",
        "the link breaks",
    ],
)
def test_every_state_is_right(case):
    explored = explore_words(PAIR, **case)
    assert explored.found is None
    assert explored.has_arrived
    assert explored.states > 100


def test_three_ranks_in_a_cycle_that_takes_two_swaps():
    explored = explore_words((0, 1, 2), ((1, 2, 0),), depth=0)
    assert explored.found is None
    assert explored.has_arrived


class Hurried(WordNode):
    """Does not wait until its steps by the older tables are done."""

    def finished(self):
        return self.tables.epoch, 1


class Eager(WordWorld):
    """Copies into slots when the host begins the step, not when the device comes to it."""

    def begin_step(self, rank):
        super().begin_step(rank)
        node = self.nodes[rank]
        *before, (tables, copies) = node.queue
        self.copy(node, copies)
        node.queue = (*before, (tables, ()))


class Greedy(WordWorld):
    """Takes the greatest word for the least."""

    def read(self, node):
        step = node.step - 1 - self.depth
        if step < self.floor[0]:
            return self.floor[1]
        return min(max(self.words[step, rank] for rank in range(len(self.nodes))), node.staged.epoch)


class Hasty(WordWorld):
    """Reads the newest exchange that its device has finished, on each rank another."""

    def read(self, node):
        step = node.step - 1 - len(node.queue)
        if step < self.floor[0]:
            return self.floor[1]
        return min(self.words.get((step, rank), 0) for rank in range(len(self.nodes)))


class Forgetful(WordWorld):
    """Goes on from the least epoch after steps broke off."""

    def greatest_epoch(self):
        return min(node.tables.epoch for node in self.nodes)


@pytest.mark.parametrize(
    ("world", "node", "budget", "says"),
    [
        (WordWorld, Hurried, {}, "which holds"),
        (Eager, WordNode, {}, "which holds"),
        (Greedy, WordNode, {"in_one": False}, "on one rank"),
        (Hasty, WordNode, {}, "on one rank"),
        (Forgetful, WordNode, {"breaks": 1}, "on one rank"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_a_rank_or_an_engine_that_keeps_to_less_is_found(world, node, budget, says):
    found = explore_words(PAIR, (SWAPPED, PAIR), depth=1, world=world, node=node, **budget).found
    assert found is not None
    assert says in found


def test_weights_that_are_offered_before_they_arrived_are_found(monkeypatch):
    real = Mover.header

    def header(mover):
        epoch, steps, _, failed, turns = real(mover)
        return epoch, steps, mover._carrier.started, failed, turns

    monkeypatch.setattr(Mover, "header", header)
    assert explore_words(PAIR, (SWAPPED,), depth=1).found is not None


def test_a_failed_write_that_is_offered_is_found(monkeypatch):
    monkeypatch.setattr(Mover, "_check_failures", lambda mover, failures_G: None)
    assert explore_words(PAIR, (SWAPPED,), depth=1, failures=1).found is not None


def test_what_was_offered_and_is_taken_back_is_found(monkeypatch):
    real = agreed.called_off

    def called_off(ledger, step):
        if ledger.phase is not Phase.AGREEING:
            return real(ledger, step)
        return replace(ledger, phase=Phase.SETTLED, goal=None, batch=())

    monkeypatch.setattr(agreed, "called_off", called_off)
    found = explore_words(PAIR, (SWAPPED, PAIR), depth=1, call_offs=1).found
    assert found is not None


def test_ranks_that_do_not_agree_again_after_the_link_broke_are_told(monkeypatch):
    monkeypatch.setattr(Mover, "rejoin", lambda mover, link: None)
    with pytest.raises(ProtocolError, match="no weight is moved any more"):
        explore_words(PAIR, (SWAPPED,), depth=0, cuts=1)
