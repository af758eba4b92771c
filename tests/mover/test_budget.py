"""How much is on its way: leg after leg, within the bytes of the steps made so far."""

import numpy as np
import pytest
from ways import rounds_between

from isotherm.mover.ledger import Ledger, Phase, Rules
from isotherm.mover.mover import Mover
from isotherm.placement import Placement
from isotherm.topology import Topology

TOPOLOGY = Topology(ranks=8, slots_per_rank=1, nodes=2)
START = Placement(np.array([[0, 1, 1, 1, 1, 1, 1, 1]]), 2)
GOAL = Placement(np.array([[0, 1, 1, 1, 0, 0, 0, 1]]), 2)


class Engine:
    """One header stands for those of all ranks. What was started ends when it is told to."""

    received_bytes = 0

    def __init__(self, bytes_per_step):
        self.epoch, self.steps = 0, 1
        self.chunks = []
        self.started = self.ended = self.failed = 0
        self.mover = Mover(
            Ledger.start(START, START.even_shares()),
            Rules(TOPOLOGY, Placement.even_shares),
            self,
            bytes_per_expert=10,
            bytes_per_step=bytes_per_step,
            finished=lambda: (self.epoch, self.steps),
            publish=lambda ledger: None,
        )

    def start(self, fills, link):
        self.started += 1
        self.chunks.append([fill.target for fill in fills])

    def round(self, steps=0):
        self.steps += steps
        self.epoch = self.mover.ledger.epoch
        self.mover.act(np.array([self.mover.header()], np.int64), None)


@pytest.mark.parametrize(
    ("bytes_per_step", "wanted"),
    [
        (100, [[[4], [5, 6]]]),
        (10, [[[4]], [[4], [5]], [[4], [5], [6]]]),
        (5, [[], [[4]], [[4]], [[4], [5]]]),
        (20, [[[4], [5]], [[4], [5], [6]]]),
    ],
)
def test_legs_are_carried_one_after_the_other_as_the_budget_grows(bytes_per_step, wanted):
    engine = Engine(bytes_per_step)
    engine.mover.aim(GOAL, GOAL.even_shares(), rounds_between(START, GOAL, TOPOLOGY, limit=3))
    engine.round()  # retired, and what one step allows is carried
    assert engine.mover.ledger.phase is Phase.FILLING
    seen = [[*engine.chunks]]
    for _ in wanted[1:]:
        engine.round(steps=1)
        seen.append([*engine.chunks])
    assert seen == wanted
    engine.round(steps=20)
    assert engine.mover.ledger.phase is Phase.FILLING  # nothing has ended yet
    engine.ended = engine.started
    engine.round()
    assert engine.mover.ledger.placement == GOAL
    assert engine.mover.moves == 3


def test_nothing_is_read_before_every_rank_has_finished_a_step():
    engine = Engine(100)
    engine.steps = 0
    engine.mover.aim(GOAL, GOAL.even_shares(), rounds_between(START, GOAL, TOPOLOGY, limit=3))
    engine.round()
    assert engine.chunks == []
    engine.round(steps=1)
    assert engine.chunks == [[4], [5, 6]]


def test_a_plan_taken_on_before_the_one_called_off_was_given_up_is_another():
    """The mover rests after a failure, while plans come again."""
    engine = Engine(100)
    rounds = rounds_between(START, GOAL, TOPOLOGY, limit=3)
    engine.mover.aim(GOAL, GOAL.even_shares(), rounds)
    engine.mover.call_off()
    engine.mover.aim(GOAL, GOAL.even_shares(), rounds)
    engine.round()
    assert engine.mover.ledger.phase is Phase.FILLING
