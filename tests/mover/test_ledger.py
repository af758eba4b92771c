"""Retire, fill, publish: the transitions under every order that headers can bring."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ways import random_placement, random_shares, rounds_between

from isotherm.mover.ledger import Ledger, Phase, Rules, accept, called_off, filled, retired
from isotherm.placement import EMPTY, Placement, Rounds, check_shares
from isotherm.topology import MoEShape, Topology


def even_rules(topology):
    return Rules(topology, Placement.even_shares)


def accepted(ledger, goal, rules, step, limit=4, shares=None):
    """The ledger on its way to ``goal`` by rounds of at most ``limit`` slots."""
    rounds = rounds_between(ledger.placement, goal, rules.topology, limit)
    return accept(ledger, goal, goal.even_shares() if shares is None else shares, rounds, rules, step)


def check_safe(ledger, older):
    """What must hold of the newest tables together with any older tables still in use."""
    live = ledger.shares > 0
    assert (ledger.content[live] != EMPTY).all()
    for layer in range(len(ledger.content)):
        served = ledger.content[layer][live[layer]]
        assert set(served.tolist()) == set(range(ledger.experts))
    check_shares(Placement(ledger.content, ledger.experts), ledger.shares)
    if older is not None:
        # A rank with the tables before sends tokens to slots by their content then.
        used = older.shares > 0
        assert (older.content[used] == ledger.content[used]).all()


moves = st.tuples(st.integers(0, 2**31), st.integers(2, 9), st.integers(1, 6), st.integers(1, 9))


@settings(max_examples=150, deadline=None)
@given(moves)
def test_every_goal_is_reached_and_every_mix_of_two_tables_is_right(case):
    seed, experts, redundant, limit = case
    rng = np.random.default_rng(seed)
    slots = experts + redundant
    rules = even_rules(Topology(ranks=slots, slots_per_rank=1))
    start, goal = (random_placement(rng, 3, experts, slots) for _ in range(2))
    ledger = Ledger.start(start, random_shares(rng, start))
    shares = random_shares(rng, goal)
    before = ledger
    ledger = accepted(ledger, goal, rules, 0, limit, shares)
    check_safe(ledger, before)
    for _ in range(20 * slots * 3):
        if ledger.phase is Phase.SETTLED:
            break
        in_force = ledger
        # Ranks may still route by the tables of this epoch while the batch is dead and being filled.
        ledger = retired(ledger, step=1)
        check_safe(ledger, in_force)
        ledger = filled(ledger, rules, step=2)
        assert len(ledger.batch) <= max(limit, 1)
        check_safe(ledger, in_force)
    assert ledger.phase is Phase.SETTLED
    assert ledger.placement == goal
    np.testing.assert_allclose(ledger.shares, shares, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(moves, st.integers(0, 12))
def test_a_plan_replaced_under_way_leads_to_the_new_goal(case, after):
    seed, experts, redundant, limit = case
    rng = np.random.default_rng(seed)
    slots = experts + redundant
    rules = even_rules(Topology(ranks=slots, slots_per_rank=1))
    start, first, second = (random_placement(rng, 2, experts, slots) for _ in range(3))
    ledger = Ledger.start(start, start.even_shares())
    ledger = accepted(ledger, first, rules, 0, limit)
    for turn in range(500):
        in_force = ledger
        if turn == after:
            if ledger.phase is not Phase.SETTLED:
                ledger = called_off(ledger, rules, step=turn)
            ledger = accepted(ledger, second, rules, turn, limit)
        elif ledger.phase is Phase.RETIRING:
            ledger = retired(ledger, step=turn)
        elif ledger.phase is Phase.FILLING:
            ledger = filled(ledger, rules, step=turn)
        elif turn > after:
            break
        check_safe(ledger, in_force)
    assert ledger.placement == second


@settings(max_examples=100, deadline=None)
@given(moves, st.integers(0, 12))
def test_a_plan_called_off_under_way_leaves_what_is_and_the_next_starts_from_it(case, after):
    seed, experts, redundant, limit = case
    rng = np.random.default_rng(seed)
    slots = experts + redundant
    rules = even_rules(Topology(ranks=slots, slots_per_rank=1))
    start, first, second = (random_placement(rng, 2, experts, slots) for _ in range(3))
    ledger = accepted(Ledger.start(start, start.even_shares()), first, rules, 0, limit)
    for turn in range(500):
        in_force = ledger
        if turn == after and ledger.phase is not Phase.SETTLED:
            empty = sum(ledger.phase is Phase.FILLING for _ in ledger.batch)
            ledger = called_off(ledger, rules, step=turn)
            assert ledger.phase is Phase.SETTLED
            assert (ledger.content == EMPTY).sum() == empty
            assert (ledger.content == in_force.content).all()
            assert ledger.epoch == in_force.epoch + 1
            check_safe(ledger, in_force)
            in_force, ledger = ledger, accepted(ledger, second, rules, turn, limit)
        elif ledger.phase is Phase.RETIRING:
            ledger = retired(ledger, step=turn)
        elif ledger.phase is Phase.FILLING:
            ledger = filled(ledger, rules, step=turn)
        elif turn > after:
            break
        check_safe(ledger, in_force)
    assert ledger.placement in (first, second)


def test_new_shares_alone_are_one_epoch_and_no_move():
    shape, topology = MoEShape(2, 4, 2), Topology(ranks=2, slots_per_rank=3)
    placement = Placement.default(shape, topology)
    ledger = Ledger.start(placement, placement.even_shares())
    shares = placement.even_shares().copy()
    shares[:, 0], shares[:, 4] = 0.9, 0.1
    ledger = accept(ledger, placement, shares, Rounds(), even_rules(topology), step=7)
    assert (ledger.epoch, ledger.phase, ledger.batch) == (1, Phase.SETTLED, ())
    np.testing.assert_allclose(ledger.shares, shares)


def test_rounds_that_lead_elsewhere_or_leave_an_expert_alone_are_refused():
    topology = Topology(ranks=2, slots_per_rank=2)
    start = Placement(np.array([[0, 1, 2, 0]], np.int32), 3)
    goal = Placement(np.array([[0, 1, 2, 1]], np.int32), 3)
    ledger, rules = Ledger.start(start, start.even_shares()), even_rules(topology)
    shares = goal.even_shares()
    with pytest.raises(ValueError, match="rounds leave expert 0 in slot 3 of layer 0, its goal has 1"):
        accept(ledger, goal, shares, Rounds(), rules, 0)
    lonely = Rounds(np.array([[0, 0, 1, 0, 0]]))
    with pytest.raises(ValueError, match=r"fills slot 1 of layer 0 .* in place of 1"):
        accept(ledger, goal, shares, lonely, rules, 0)
    both = Rounds(np.array([[0, 0, 3, 1, 1], [0, 0, 0, 1, 1]]))  # neither replica of expert 0 is left
    with pytest.raises(ValueError, match="leaves no live replica"):
        accept(ledger, goal, shares, both, rules, 0)
    retired_source = Rounds(np.array([[0, 0, 3, 1, 1], [0, 0, 1, 0, 0]]))
    with pytest.raises(ValueError, match="leaves no live replica"):
        accept(ledger, goal, shares, retired_source, rules, 0)


def test_a_plan_names_the_contents_it_was_made_for():
    topology = Topology(ranks=3, slots_per_rank=1)
    start = Placement(np.array([[0, 1, 1]], np.int32), 2)
    goal = Placement(np.array([[0, 1, 0]], np.int32), 2)
    ledger = Ledger.start(start, start.even_shares())
    rules = even_rules(topology)
    there = filled(retired(accepted(ledger, goal, rules, 0), 1), rules, 2)
    back = filled(retired(accepted(there, start, rules, 0), 1), rules, 2)
    assert back.placement == start
    assert len({ledger.identity, there.identity, back.identity}) == 3


def test_shares_on_the_way_are_asked_for_what_is_live():
    topology = Topology(ranks=3, slots_per_rank=2)
    start = Placement(np.array([[0, 1, 2, 3, 0, 1]], np.int32), 4)
    goal = Placement(np.array([[0, 1, 2, 3, 2, 1]], np.int32), 4)
    asked = []

    def reshare(live):
        asked.append(live.slot_to_expert[0].tolist())
        return np.array([[1.0, 0.75, 1.0, 1.0, 0.0, 0.25]])

    rules = Rules(topology, reshare)
    shares = np.array([[1.0, 0.5, 0.6, 1.0, 0.4, 0.5]])
    ledger = accepted(Ledger.start(start, start.even_shares()), goal, rules, 0, shares=shares)
    assert asked == [[0, 1, 2, 3, EMPTY, 1]]
    assert ledger.shares.tolist() == [[1.0, 0.75, 1.0, 1.0, 0.0, 0.25]]
    arrived = filled(retired(ledger, 1), rules, 2)
    assert arrived.shares.tolist() == shares.tolist()
    assert len(asked) == 1
