"""What the slots of all ranks hold together, while ledgers of ranks are a round apart."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ways import random_placement, rounds_between

from isotherm.hall.held import HeldWeights
from isotherm.mover.ledger import Ledger, Phase, Rules, accept, filled, retired
from isotherm.mover.slots import LocalSlots
from isotherm.mover.weights import ExpertWeights
from isotherm.placement import Placement
from isotherm.topology import Topology

EXPERTS, LAYERS = 3, 2
TOPOLOGY = Topology(ranks=2, slots_per_rank=2)


def way(seed):
    """The ledgers from one placement to another, each with the tables in force."""
    rng = np.random.default_rng(seed)
    start, goal = (random_placement(rng, LAYERS, EXPERTS, TOPOLOGY.slots) for _ in range(2))
    rules = Rules(TOPOLOGY, Placement.even_shares)
    ledgers = [Ledger.start(start, start.even_shares())]
    rounds = rounds_between(start, goal, TOPOLOGY, 2)
    ledgers.append(accept(ledgers[0], goal, goal.even_shares(), rounds, rules, 0))
    while ledgers[-1].phase is not Phase.SETTLED:
        ledgers.append(retired(ledgers[-1], 1))
        ledgers.append(filled(ledgers[-1], rules, 2))
    return ledgers


class Rank:
    """A rank's slots, filled as ``ledger`` says; ``later`` comes while it waits for its stream."""

    def __init__(self, rank, ledger, later=None):
        own = slice(2 * rank, 2 * rank + 2)
        weights = [{"up": torch.tensor(row[own])[:, None].float()} for row in ledger.content]
        experts = ExpertWeights(weights, layers=LAYERS, slots_per_rank=2)
        self.ledger, self._later = ledger, later
        self.weights = weights
        mover = SimpleNamespace(ledger_in_force=lambda epoch: self.ledger)
        self.held = HeldWeights(
            LocalSlots(weights, experts, TOPOLOGY, rank),
            SimpleNamespace(epoch=0, wait=self._wait),
            SimpleNamespace(mover=mover),
            LAYERS,
            lambda: None,
        )

    def _wait(self):
        if self._later is not None:
            self.ledger = self._later
            for layer, named in enumerate(self.weights):
                for slot in np.flatnonzero(self._later.content[layer] < 0) % 2:
                    named["up"][slot] = -7.0  # being filled


def experts_of(*ranks):
    found = [{} for _ in range(LAYERS)]
    for rank in ranks:
        for layer, experts in enumerate(rank.held.logical_state()):
            for expert, tensors in experts.items():
                assert (tensors["up"] == expert).all()
            found[layer] |= experts
    return [set(experts) for experts in found]


@pytest.mark.parametrize("seed", range(12))
def test_every_expert_is_on_some_rank_though_one_has_heard_of_a_round_less(seed):
    ledgers = way(seed)
    for before, after in pairwise(ledgers):
        for ahead in range(2):
            ranks = [Rank(rank, after if rank == ahead else before) for rank in range(2)]
            assert experts_of(*ranks) == [set(range(EXPERTS))] * LAYERS


def test_a_slot_that_dies_while_it_is_copied_is_left_out():
    seen = 0
    for seed in range(12):
        ledgers = way(seed)
        for retiring, dead in pairwise(ledgers):
            if retiring.phase is not Phase.RETIRING:
                continue
            for rank in range(2):
                gone = [fill for fill in retiring.batch if fill.target // 2 == rank]
                seen += len(gone)
                state = Rank(rank, retiring, later=dead).held.logical_state()
                live = retiring.shares[:, 2 * rank : 2 * rank + 2] > 0
                assert [len(experts) for experts in state] == [
                    len(set(retiring.content[layer, 2 * rank : 2 * rank + 2][live[layer]]))
                    for layer in range(LAYERS)
                ]
    assert seen > 0
