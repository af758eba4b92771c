"""What an engine's own dispatch makes of a plan, against tokens sent one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import isotherm as iso
from isotherm.placement import rank_loads
from isotherm.planner import PlanRequest, make_plan
from isotherm.planner.served.dispatch import rule_of, served_shares, source_parts

ENGINES = ("vllm", "sglang", "vllm-ascend", "tensorrt-llm")
UNEVEN = ("sglang", "vllm-ascend")
TOKENS = 720720  # of each expert from each rank: divides by any number of replicas here


def send(engine, token, source, slots, topology):
    """The slot that a token of rank ``source`` goes to, of those in ascending ``slots`` that hold its expert,
    as each engine's documentation and source describe it."""
    rank_of, node_of = topology.rank_of, lambda slot: topology.rank_of(slot) // topology.ranks_per_node
    if engine == "vllm-ascend":
        return slots[source % len(slots)]
    if engine == "sglang" and len(slots) > 1:
        here = [slot for slot in slots if rank_of(slot) == source]
        near = [slot for slot in slots if node_of(slot) == source // topology.ranks_per_node]
        if here or near:
            return (here or near)[0]
    return slots[token % len(slots)]


def counted(engine, row_P, experts, topology, tokens_GE):
    """Tokens that arrive in each slot, by runs of tokens that take every replica in turn once."""
    arrived_P = np.zeros(len(row_P))
    for expert in range(experts):
        slots = np.flatnonzero(row_P == expert).tolist()
        for source in range(topology.ranks):
            for token in range(len(slots)):
                arrived_P[send(engine, token, source, slots, topology)] += tokens_GE[source, expert] / len(
                    slots
                )
    return arrived_P


@st.composite
def placements(draw):
    """(topology, placement of one layer)"""
    nodes = draw(st.integers(1, 3))
    topology = iso.Topology(nodes * draw(st.integers(1, 3)), draw(st.integers(1, 4)), nodes)
    experts = draw(st.integers(1, topology.slots))
    extra = draw(st.lists(st.integers(0, experts - 1), min_size=topology.slots, max_size=topology.slots))
    row = [*range(experts), *extra][: topology.slots]
    return topology, iso.Placement([draw(st.permutations(row))], experts)


@settings(max_examples=150, deadline=None)
@given(placements(), st.sampled_from(ENGINES), st.booleans(), st.integers(0, 2**32))
def test_shares_are_what_tokens_sent_one_by_one_make(problem, engine, told, seed):
    topology, placement = problem
    source_heat = np.random.default_rng(seed).integers(0, 4, (topology.nodes, 1, placement.experts)) * TOKENS
    parts_LEN = source_parts(source_heat if told else None, (1, placement.experts), topology.nodes)
    shares_LP = served_shares(placement, topology, rule_of(engine).split, parts_LEN)
    tokens_GE = np.repeat(source_heat[:, 0], topology.ranks_per_node, axis=0) / topology.ranks_per_node
    if not told:
        tokens_GE = np.full((topology.ranks, placement.experts), TOKENS)
    row_P = placement.slot_to_expert[0]
    arrived_P = counted(engine, row_P, placement.experts, topology, tokens_GE)
    assert shares_LP[0] * tokens_GE.sum(axis=0)[row_P] == pytest.approx(arrived_P)


def problem(nodes):
    rng = np.random.default_rng(5)
    heat = np.round(rng.lognormal(0, 0.7, (3, 32)) * 1000)
    return heat, iso.Topology.for_model(experts=32, redundant=8, ranks=8, nodes=nodes)


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("engine", UNEVEN)
def test_a_plan_reports_and_improves_what_the_engine_will_give(engine, nodes):
    heat, topology = problem(nodes)
    plan = iso.plan(heat, topology, engine=engine)
    for layer, row_P in enumerate(plan.placement.slot_to_expert):
        tokens_GE = np.tile(heat[layer] / topology.ranks, (topology.ranks, 1))
        load_G = counted(engine, row_P, 32, topology, tokens_GE).reshape(topology.ranks, -1).sum(axis=1)
        assert plan.imbalance[layer] == pytest.approx(load_G.max() / load_G.mean())
    even = iso.plan(heat, topology, shares="even").placement
    parts_LEN = source_parts(None, heat.shape, nodes)
    shares_LP = served_shares(even, topology, rule_of(engine).split, parts_LEN)
    unaware = iso.layer_imbalance(rank_loads(heat, even, shares_LP, topology))
    assert plan.imbalance.mean() - 1 < (unaware.mean() - 1) / 2


@pytest.mark.parametrize("engine", UNEVEN)
def test_a_replan_for_an_engine_keeps_to_target_and_budget(engine):
    heat, topology = problem(2)
    current = iso.plan(heat, topology, engine=engine).placement
    assert iso.plan(heat, topology, current, engine=engine, max_imbalance=1.2).moves == ()
    other = heat[:, ::-1]
    as_is = iso.plan(other, topology, current, engine=engine, policy="static")
    free = iso.plan(other, topology, current, engine=engine, max_imbalance=1.1)
    assert (free.imbalance <= 1.1).all()
    few = iso.plan(other, topology, current, engine=engine, max_imbalance=1.1, max_moves=6)
    assert 0 < len(few.moves) <= 6 < len(free.moves)
    assert few.imbalance.sum() < as_is.imbalance.sum()


def test_where_tokens_come_from_decides_what_the_nearest_replica_gets():
    topology = iso.Topology(ranks=4, slots_per_rank=2, nodes=2)
    row = [[0, 1, 2, 3, 0, 4, 5, 6]]
    heat_NLE = np.ones((2, 1, 7))
    heat_NLE[0, 0, 0] = 3
    request = PlanRequest(
        heat_NLE.sum(axis=0),
        topology,
        iso.Placement(row, 7),
        shares="even",
        engine="sglang",
        source_heat_NLE=heat_NLE,
    )
    assert make_plan(request, policy="static").shares[0, [0, 4]].tolist() == [0.75, 0.25]


def test_an_engine_that_cannot_hold_it_refuses_it():
    topology = iso.Topology(ranks=2, slots_per_rank=3)
    twice = [[0, 0, 1, 1, 2, 3]]
    with pytest.raises(iso.PlanRefusedError, match="expert 0 is twice on rank 0"):
        iso.plan(np.ones((1, 4)), topology, twice, engine="vllm-ascend", policy="static")
    assert iso.plan(np.ones((1, 4)), topology, twice, engine="vllm", policy="static").moves == ()
    empty = [[0, -1, 1, 1, 2, 3]]
    with pytest.raises(
        ValueError, match="layer 0, slot 1 of current is empty, and engine='vllm' knows no empty"
    ):
        iso.plan(np.ones((1, 4)), topology, empty, engine="vllm")
    with pytest.raises(ValueError, match=r"source_heat_NLE has shape \(2, 1, 4\): give \(1, 1, 4\)"):
        PlanRequest(np.ones((1, 4)), topology, source_heat_NLE=np.ones((2, 1, 4)))


def test_an_empty_slot_that_a_policy_leaves_is_refused(monkeypatch):
    from isotherm.planner.policy import registry

    monkeypatch.setitem(registry._POLICIES.ours, "lazy", lambda request: np.array([[0, 1, 2, 3, -1, -1]]))
    topology = iso.Topology(ranks=2, slots_per_rank=3)
    assert iso.plan(np.ones((1, 4)), topology, policy="lazy").placement.slot_to_expert[0, 4] == iso.EMPTY
    with pytest.raises(iso.PlanRefusedError, match="slot 4 is empty, and engine='sglang' knows no empty"):
        iso.plan(np.ones((1, 4)), topology, policy="lazy", engine="sglang")
