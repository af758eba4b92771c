"""Where weights come from, and what is on its way together: checked move by move."""

from itertools import groupby

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from isotherm.mover.schedule import PEERS_AT_ONCE, Fill, schedule_fills
from isotherm.placement import EMPTY, Refill
from isotherm.topology import Topology


@st.composite
def rounds(draw):
    """(refills, what is live, topology): each refill's expert is live somewhere, its own slot is not."""
    nodes = draw(st.integers(1, 3))
    topology = Topology(nodes * draw(st.integers(1, 3)), draw(st.integers(1, 3)), nodes=nodes)
    layers, experts = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    live_LP = draw(
        st.lists(
            st.lists(st.integers(EMPTY, experts - 1), min_size=topology.slots, max_size=topology.slots),
            min_size=layers,
            max_size=layers,
        )
    )
    live_LP = np.array(live_LP, np.int32)
    refills = []
    for layer in range(layers):
        held = sorted(set(live_LP[layer].tolist()) - {EMPTY})
        dead = np.flatnonzero(live_LP[layer] == EMPTY).tolist()
        if held:
            refills += [Refill(layer, slot, draw(st.sampled_from(held)), -1) for slot in dead]
    return draw(st.permutations(refills)), live_LP, topology


def node_of(slot, topology):
    return topology.rank_of(slot) // topology.ranks_per_node


def crossings_needed(refills, live_LP, topology):
    """Every node that is to get an expert which none of its slots can be read for needs it sent once."""
    wanted = {(refill.layer, refill.expert, node_of(refill.slot, topology)) for refill in refills}
    return {
        (layer, expert, node)
        for layer, expert, node in wanted
        if all(node_of(int(slot), topology) != node for slot in np.flatnonzero(live_LP[layer] == expert))
    }


@settings(max_examples=300, deadline=None)
@given(rounds())
def test_every_fill_is_read_where_its_expert_is_and_crosses_to_a_node_once(case):
    refills, live_LP, topology = case
    fills = schedule_fills(refills, live_LP, topology)
    assert sorted((f.layer, f.target, f.expert) for f in fills) == sorted(refill[:3] for refill in refills)
    readable = {
        (layer, slot): int(live_LP[layer, slot]) for layer, slot in np.argwhere(live_LP >= 0).tolist()
    }
    crossings = []
    legs = [list(leg) for _, leg in groupby(fills, lambda fill: fill.leg)]
    assert [leg[0].leg for leg in legs] == list(range(len(legs)))
    for leg in legs:
        for fill in leg:
            assert readable[fill.layer, fill.source] == fill.expert  # before this leg began
            if node_of(fill.source, topology) != node_of(fill.target, topology):
                crossings.append((fill.layer, fill.expert, node_of(fill.target, topology)))
        for fill in leg:
            assert (fill.layer, fill.target) not in readable  # nobody reads what is written
            readable[fill.layer, fill.target] = fill.expert
    assert len(crossings) == len(set(crossings))
    assert set(crossings) == crossings_needed(refills, live_LP, topology)


@settings(max_examples=200, deadline=None)
@given(rounds())
def test_a_rank_has_few_peers_in_a_leg_and_stays_at_home_where_it_can(case):
    refills, live_LP, topology = case
    fills = schedule_fills(refills, live_LP, topology)
    for leg in {fill.leg for fill in fills}:
        pairs = {
            frozenset((topology.rank_of(fill.source), topology.rank_of(fill.target)))
            for fill in fills
            if fill.leg == leg
        }
        for rank in range(topology.ranks):
            assert sum(rank in pair for pair in pairs if len(pair) == 2) <= PEERS_AT_ONCE
    for fill in fills:
        own = range(topology.rank_of(fill.target) * topology.slots_per_rank, topology.slots)
        own = own[: topology.slots_per_rank]
        if any(live_LP[fill.layer, slot] == fill.expert for slot in own):
            assert topology.rank_of(fill.source) == topology.rank_of(fill.target)
    assert schedule_fills(refills, live_LP, topology) == fills


def test_idle_ranks_send_first_and_the_rest_of_a_node_takes_it_on():
    topology = Topology(ranks=8, slots_per_rank=1, nodes=2)
    live_LP = np.array([[0, 0, 1, 1, -1, -1, -1, -1]], np.int32)
    refills = [Refill(0, 4, 0, 0), Refill(0, 5, 0, 0), Refill(0, 6, 0, 0), Refill(0, 7, 1, 2)]
    assert schedule_fills(refills, live_LP, topology) == (
        Fill(0, 4, 0, 0, leg=0),
        Fill(0, 7, 1, 2, leg=0),
        Fill(0, 5, 0, 4, leg=1),
        Fill(0, 6, 0, 4, leg=1),
    )
    apart = [Refill(layer, 4 + layer, 0, 0) for layer in range(4)]
    live_LP = np.tile(np.array([[0, 0, 0, -1, -1, -1, -1, -1]], np.int32), (4, 1))
    assert [fill.source for fill in schedule_fills(apart, live_LP, topology)] == [0, 1, 2, 0]
