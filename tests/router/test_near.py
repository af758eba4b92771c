"""Near replicas first: all ranks together send what was planned, and no split that does crosses less."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routed import Counted, random_ids
from scipy.optimize import linprog

from isotherm.placement import Placement, expert_sums
from isotherm.router import RoutingTables, near_split
from isotherm.topology import Topology

shapes = st.tuples(
    st.integers(0, 2**31), st.sampled_from([1, 2, 3]), st.integers(1, 3), st.integers(2, 4), st.booleans()
)


def random_case(seed, nodes, per_node, size, knows_sources):
    rng = np.random.default_rng(seed)
    topology = Topology(ranks=nodes * per_node, slots_per_rank=size, nodes=nodes)
    experts = int(rng.integers(1, topology.slots + 1))
    rows = [
        rng.permutation(
            np.concatenate([np.arange(experts), rng.integers(-1, experts, topology.slots - experts)])
        )
        for _ in range(2)
    ]
    placement = Placement(np.array(rows, np.int32), experts)
    shares_LP = rng.random(placement.slot_to_expert.shape) * (
        rng.random(placement.slot_to_expert.shape) < 0.8
    )
    for row_P, share_P in zip(placement.slot_to_expert, shares_LP):
        share_P[row_P < 0] = 0
        for expert in range(experts):
            (slots,) = np.nonzero(row_P == expert)
            share_P[slots[0]] += 1e-3
            share_P[slots] /= share_P[slots].sum()
    source_NLE = rng.integers(0, 4, (nodes, 2, experts)) if knows_sources else None
    return topology, placement, shares_LP, source_NLE


def supply(topology, source_NLE, layer, expert):
    """The part of the expert's tokens that each rank has."""
    if source_NLE is None or not source_NLE[:, layer, expert].sum():
        return np.full(topology.ranks, 1 / topology.ranks)
    part_N = source_NLE[:, layer, expert] / source_NLE[:, layer, expert].sum()
    return np.repeat(part_N / topology.ranks_per_node, topology.ranks_per_node)


@settings(max_examples=60, deadline=None)
@given(shapes)
def test_all_ranks_together_send_what_was_planned(case):
    topology, placement, shares_LP, source_NLE = random_case(*case)
    near_GLP = np.array(
        [
            near_split(placement.slot_to_expert, shares_LP, topology, rank, source_NLE)
            for rank in range(topology.ranks)
        ]
    )
    assert (near_GLP >= 0).all()
    assert (near_GLP[:, shares_LP == 0] == 0).all()
    for near_LP in near_GLP:
        assert expert_sums(placement, near_LP) == pytest.approx(1, abs=1e-9)
    for layer, row_P in enumerate(placement.slot_to_expert):
        for slot, expert in enumerate(row_P):
            if expert >= 0:
                sent = supply(topology, source_NLE, layer, expert) @ near_GLP[:, layer, slot]
                assert sent == pytest.approx(shares_LP[layer, slot], abs=1e-8)


def distance(topology, rank, slot):
    """10 across nodes, 1 across ranks: crossing nodes less always comes first."""
    to = slot // topology.slots_per_rank
    if rank == to:
        return 0
    return 1 if rank // topology.ranks_per_node == to // topology.ranks_per_node else 10


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_no_split_with_the_same_sums_has_a_shorter_way(case):
    """Against HiGHS: the transport problem of each expert."""
    topology, placement, shares_LP, source_NLE = random_case(*case)
    near_GLP = [
        near_split(placement.slot_to_expert, shares_LP, topology, rank, source_NLE)
        for rank in range(topology.ranks)
    ]
    expert = case[0] % placement.experts
    (slots,) = np.nonzero(placement.slot_to_expert[0] == expert)
    supply_G = supply(topology, source_NLE, 0, expert)
    cost_GS = np.array([[distance(topology, rank, slot) for slot in slots] for rank in range(topology.ranks)])
    ours = sum(supply_G[rank] * cost_GS[rank] @ near_GLP[rank][0, slots] for rank in range(topology.ranks))
    rows = np.kron(np.eye(topology.ranks), np.ones(len(slots)))
    columns = np.kron(np.ones(topology.ranks), np.eye(len(slots)))
    wanted = np.concatenate([supply_G, shares_LP[0, slots]])
    found = linprog(cost_GS.ravel(), A_eq=np.vstack([rows, columns]), b_eq=wanted)
    assert found.status == 0
    assert ours == pytest.approx(found.fun, abs=1e-6)


def test_a_node_without_heat_of_an_expert_splits_it_as_planned():
    topology = Topology(ranks=2, slots_per_rank=2, nodes=2)
    content, shares = np.array([[0, 1, 0, 1]], np.int32), np.array([[0.7, 0.5, 0.3, 0.5]])
    source = np.array([[[5, 1]], [[0, 1]]])
    assert near_split(content, shares, topology, 1, source) == pytest.approx(np.array([[0.7, 0, 0.3, 1]]))
    assert near_split(content, shares, topology, 0, source) == pytest.approx(np.array([[0.7, 1, 0.3, 0]]))


def test_a_placement_without_replicas_is_left_as_it_is():
    topology = Topology(ranks=2, slots_per_rank=2)
    content, shares = np.array([[0, 1, 2, 3]], np.int32), np.ones((1, 4))
    assert (near_split(content, shares, topology, 0) == shares).all()


def test_tables_of_near_splits_send_batches_as_planned_in_the_sum_over_ranks():
    """Ranks with equal batches: what each replica receives is within 1 a rank of what was planned."""
    topology, placement, shares_LP, _ = random_case(3, 2, 2, 4, False)
    content, experts = placement.slot_to_expert, placement.experts
    ids = random_ids(np.random.default_rng(0), 2000, experts, 2)
    received_P, near_pairs = np.zeros(topology.slots), [0, 0]
    for rank in range(topology.ranks):
        for kind, split_LP in enumerate((shares_LP, near_split(content, shares_LP, topology, rank))):
            counted = Counted(RoutingTables.build(content, split_LP, experts), rank)
            chosen = counted.route(ids)
            assert (content[1][chosen[chosen >= 0].numpy()] == ids[chosen >= 0].numpy()).all()
            near_pairs[kind] += int((chosen // topology.slots_per_rank == rank).sum())
        received_P += counted.received[0, 1].numpy()
    heat_E = topology.ranks * counted.heat[0, 0, 1].numpy()
    wanted_P = np.where(content[1] >= 0, heat_E[content[1]] * shares_LP[1], 0)
    assert np.abs(received_P - wanted_P).max() <= topology.ranks
    assert near_pairs[1] > near_pairs[0]
