"""Slots that change in the same step on all ranks: every goal is reached, within the buffers."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ways import random_placement, random_shares

from isotherm.mover import agreed
from isotherm.mover.ledger import Ledger, Phase, Rules
from isotherm.placement import EMPTY, Placement, check_shares
from isotherm.topology import Topology


@st.composite
def ways(draw):
    """(start, goal, rules): some starts have empty slots."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    topology = Topology(draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    experts, layers = draw(st.integers(1, topology.slots)), draw(st.integers(1, 3))
    start, goal = (random_placement(rng, layers, experts, topology.slots) for _ in range(2))
    if draw(st.booleans()):
        start = with_empty_slots(start)
    rules = Rules(
        topology,
        Placement.even_shares,
        by_word=True,
        limit=draw(st.integers(1, 6)),
        buffers=draw(st.integers(2, 4)),
    )
    return start, goal, random_shares(rng, goal), rules


def with_empty_slots(placement):
    """The first replica of each layer that has another is gone."""
    content_LP = placement.slot_to_expert.copy()
    for row_P in content_LP:
        spare = [slot for slot, expert in enumerate(row_P) if (row_P == expert).sum() > 1]
        row_P[spare[:1]] = EMPTY
    return Placement(content_LP, placement.experts)


def check_batch(ledger, rules):
    """Read before anything is written; in buffers of their own; few."""
    topology = rules.topology
    assert 0 < len(ledger.batch) <= max(rules.limit, 2)
    arrived = {}
    for fill in ledger.batch:
        source_rank = topology.rank_of(fill.source)
        if fill.source_buffer < 0:
            assert ledger.content[fill.layer, fill.source] == fill.expert
        else:
            assert arrived[source_rank, fill.source_buffer] == (fill.layer, fill.expert)
        place = topology.rank_of(fill.target), fill.buffer
        assert place not in arrived
        assert 0 <= fill.buffer < rules.buffers
        arrived[place] = fill.layer, fill.expert
    targets = Counter((fill.layer, fill.target) for fill in ledger.batch)
    assert max(targets.values()) == 1


@settings(max_examples=300, deadline=None)
@given(ways())
def test_every_goal_is_reached_and_every_table_serves_every_expert(case):
    start, goal, shares, rules = case
    ledger = agreed.accept(Ledger.start(start, start.even_shares()), goal, shares, rules, step=0)
    settled = int((start.slot_to_expert == goal.slot_to_expert).sum())
    for turn in range(goal.slot_to_expert.size + 1):
        if ledger.phase is Phase.STAGING:
            check_batch(ledger, rules)
            before = ledger
            ledger = agreed.staged(ledger, rules, turn)
            assert ledger.epoch == before.epoch + 1
            after = int((ledger.content == goal.slot_to_expert).sum())
            assert after > settled
            settled = after
        assert ledger.phase is Phase.AGREEING
        check_shares(Placement(ledger.content, ledger.experts), ledger.shares)  # every expert has a slot
        ledger = agreed.taken(ledger, rules, turn)
        if ledger.phase is Phase.SETTLED:
            break
    assert ledger.placement == goal
    assert (ledger.shares == shares).all()
    assert (ledger.goal, ledger.batch) == (None, ())


def test_few_weights_travel_where_cycles_fit():
    """A cycle that fits in the buffers is carried at once, each expert one time; a longer one by swaps."""
    start, goal = Placement(np.arange(6)[None], 6), Placement(np.roll(np.arange(6), 1)[None], 6)
    for ranks, limit, wanted in ((6, 6, [6]), (3, 6, [6]), (6, 2, [2] * 5), (2, 6, [4, 4])):
        rules = Rules(
            Topology(ranks, 6 // ranks), Placement.even_shares, by_word=True, limit=limit, buffers=2
        )
        ledger = agreed.accept(Ledger.start(start, start.even_shares()), goal, goal.even_shares(), rules, 0)
        carried = []
        while ledger.phase is Phase.STAGING:
            carried.append(len(ledger.batch))
            ledger = agreed.taken(agreed.staged(ledger, rules, 0), rules, 0)
        assert carried == wanted


def test_what_is_staged_is_dropped_and_what_was_offered_stays():
    start, goal = Placement(np.arange(4)[None], 4), Placement(np.array([[1, 0, 3, 2]]), 4)
    rules = Rules(Topology(4, 1), Placement.even_shares, by_word=True, limit=2)
    begun = agreed.accept(Ledger.start(start, start.even_shares()), goal, goal.even_shares(), rules, 0)
    dropped = agreed.called_off(begun, step=3)
    assert (dropped.phase, dropped.epoch, dropped.batch) == (Phase.SETTLED, 0, ())
    assert dropped.placement == start
    offered = agreed.staged(begun, rules, 1)
    kept = agreed.called_off(offered, step=3)
    assert (kept.phase, kept.epoch) == (Phase.AGREEING, 1)
    over = agreed.taken(kept, rules, 4)
    assert over.phase is Phase.SETTLED
    assert over.placement.slot_to_expert.tolist() == [[1, 0, 2, 3]]


def test_shares_alone_are_offered_at_once():
    start = Placement(np.array([[0, 1, 0]]), 2)
    shares = np.array([[0.25, 1.0, 0.75]])
    rules = Rules(Topology(3, 1), Placement.even_shares, by_word=True)
    offered = agreed.accept(Ledger.start(start, start.even_shares()), start, shares, rules, 0)
    assert (offered.phase, offered.epoch, offered.batch) == (Phase.AGREEING, 1, ())
    assert agreed.taken(offered, rules, 1).phase is Phase.SETTLED


def test_a_word_puts_in_force_what_all_have_and_no_more():
    assert agreed.heard(epoch=3, offered=4, word=4) == 4
    assert agreed.heard(epoch=3, offered=4, word=3) == 3
    assert agreed.heard(epoch=4, offered=4, word=2) == 4  # read late
    with pytest.raises(ValueError, match="step_word returned 5, and this rank has lent no more than 4"):
        agreed.heard(epoch=3, offered=4, word=5)


def test_a_goal_that_empties_a_slot_is_refused():
    start, goal = Placement(np.array([[0, 1, 0]]), 2), Placement(np.array([[0, 1, EMPTY]]), 2)
    rules = Rules(Topology(3, 1), Placement.even_shares, by_word=True)
    with pytest.raises(ValueError, match="empties slot 2 of layer 0: give each slot an expert"):
        agreed.accept(Ledger.start(start, start.even_shares()), goal, goal.even_shares(), rules, 0)
