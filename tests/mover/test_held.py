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
from isotherm.topology import Topology

EXPERTS, LAYERS = 3, 2
TOPOLOGY = Topology(ranks=2, slots_per_rank=2)


def way(seed):
    """The ledgers from one placement to another, each with the tables in force."""
    rng = np.random.default_rng(seed)
    start, goal = (random_placement(rng, LAYERS, EXPERTS, TOPOLOGY.slots) for _ in range(2))

    def reshare(live):
        """All of an expert's tokens to one of its replicas, now this one, now that."""
        shares_LP = np.zeros(live.slot_to_expert.shape)
        for layer, row in enumerate(live.slot_to_expert):
            for expert in range(EXPERTS):
                shares_LP[layer, rng.choice(np.flatnonzero(row == expert))] = 1
        return shares_LP

    rules = Rules(TOPOLOGY, reshare)
    ledgers = [Ledger.start(start, reshare(start))]
    rounds = rounds_between(start, goal, TOPOLOGY, 2)
    ledgers.append(accept(ledgers[0], goal, reshare(goal), rounds, rules, 0))
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
        for retiring, dead in pairwise(way(seed)):
            if retiring.phase is not Phase.RETIRING:
                continue
            for rank in range(2):
                state = Rank(rank, retiring, later=dead).held.logical_state()
                for layer, experts in enumerate(state):
                    held = dead.content[layer, 2 * rank : 2 * rank + 2]
                    assert set(experts) == set(held[held >= 0])
                    seen += (held < 0).any()
    assert seen > 0
