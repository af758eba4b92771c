"""Routing: tables, the choice by ordinal, and the two implementations against a plain oracle."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isotherm.placement import EMPTY, Placement
from isotherm.router import Router, RoutingTables, device, warm_up
from isotherm.router.kernels import map_and_count, rounding_base
from isotherm.router.tables import ONE
from isotherm.topology import MoEShape, Topology


def random_tables(rng, experts, slots, layers=2):
    """Contents with every expert placed, some slots empty or retired, and random shares."""
    rows = []
    for _ in range(layers):
        row = np.concatenate([np.arange(experts), rng.integers(-1, experts, slots - experts)])
        rows.append(rng.permutation(row))
    content_LP = np.array(rows, np.int32)
    shares_LP = np.where(content_LP >= 0, rng.random(content_LP.shape), 0.0)
    replicas_LE = Placement(content_LP, experts).replicas_LE
    redundant = np.take_along_axis(replicas_LE, np.maximum(content_LP, 0).astype(int), 1) > 1
    first_LP = np.zeros(content_LP.shape, bool)
    for layer in range(layers):
        first_LP[layer, np.unique(content_LP[layer], return_index=True)[1]] = True
    shares_LP[redundant & ~first_LP & (rng.random(content_LP.shape) < 0.4)] = 0.0
    shares_LP += 1e-6 * (content_LP >= 0) * first_LP
    totals = np.zeros((layers, experts))
    for layer in range(layers):
        live = content_LP[layer] >= 0
        np.add.at(totals[layer], content_LP[layer, live], shares_LP[layer, live])
    shares_LP /= np.take_along_axis(totals, np.maximum(content_LP, 0).astype(int), 1)
    shares_LP[content_LP < 0] = 0
    return content_LP, shares_LP, RoutingTables.build(content_LP, shares_LP, experts)


def random_ids(rng, tokens, experts, top_k, dtype=torch.int64):
    ids = np.argsort(rng.random((tokens, experts)) ** rng.uniform(0.2, 3, experts), axis=1)
    ids = ids[:, :top_k].copy()
    ids[rng.random(ids.shape) < 0.05] = -1
    return torch.from_numpy(ids).to(dtype)


class Counted:
    """A router with its own counts, of which layer 1 is used."""

    def __init__(self, tables, rank=0):
        layers, slots = tables.slots.shape
        experts = tables.offsets.shape[1] - 1
        self.heat = torch.zeros((2, layers, experts), dtype=torch.int32)
        self.received = torch.zeros((layers, slots), dtype=torch.int32)
        self.router = Router(
            tables,
            rank=rank,
            device=torch.device("cpu"),
            heat_KLE=self.heat,
            received_LP=self.received,
        )

    def route(self, ids, num_tokens=None, num_decode=0, step=3):
        num_tokens = len(ids) if num_tokens is None else num_tokens
        return self.router.route(1, ids, step=step, num_tokens=num_tokens, num_decode=num_decode)


cases = st.tuples(
    st.integers(0, 2**31), st.integers(4, 40), st.integers(0, 12), st.sampled_from([0, 1, 3, 50, 300])
)


@settings(max_examples=60, deadline=None)
@given(cases)
def test_each_pair_reaches_a_live_replica_within_one_of_its_share(case):
    seed, experts, redundant, tokens = case
    rng = np.random.default_rng(seed)
    slots = experts + redundant
    content, shares, tables = random_tables(rng, experts, slots)
    ids = random_ids(rng, tokens, experts, 3)
    chosen = Counted(tables, int(rng.integers(8))).route(ids, step=int(rng.integers(1000)))
    ids, chosen = ids.numpy(), chosen.numpy()
    assert ((chosen == -1) == (ids == -1)).all()
    assert (content[1][chosen[chosen >= 0]] == ids[ids >= 0]).all()
    count_P = np.bincount(chosen[chosen >= 0], minlength=slots)
    count_E = np.bincount(ids[ids >= 0], minlength=experts)
    expected_P = np.where(content[1] >= 0, count_E[np.maximum(content[1], 0)] * shares[1], 0)
    assert (np.abs(count_P - expected_P) < 1 + 1e-6).all()
    assert (count_P[shares[1] == 0] == 0).all()


@settings(max_examples=60, deadline=None)
@given(cases)
def test_counts_are_exact_and_the_device_path_is_equal_bit_for_bit(case):
    seed, experts, redundant, tokens = case
    rng = np.random.default_rng(seed)
    slots = experts + redundant
    _, _, tables = random_tables(rng, experts, slots)
    rank, step = int(rng.integers(8)), int(rng.integers(1000))
    counted = Counted(tables, rank)
    dtype = torch.int32 if seed % 2 else torch.int64
    ids = random_ids(rng, tokens, experts, 3, dtype)
    num_tokens = int(rng.integers(tokens + 1))
    num_decode = int(rng.integers(num_tokens + 1))
    chosen = counted.route(ids, num_tokens, num_decode, step)
    heat, received = counted.heat[:, 1], counted.received[1]
    assert not counted.heat[:, 0].any()
    assert chosen.dtype == dtype
    plain = ids.numpy()
    for kind, rows in enumerate((plain[num_decode:num_tokens], plain[:num_decode])):
        assert (heat[kind].numpy() == np.bincount(rows[rows >= 0], minlength=experts)).all()
    real = chosen.numpy()[:num_tokens]
    assert (received.numpy() == np.bincount(real[real >= 0], minlength=slots)).all()

    heat2, received2 = torch.zeros_like(heat), torch.zeros_like(received)
    chosen2 = device.map_and_count(
        ids,
        num_tokens,
        num_decode,
        rounding_base(1, step, rank),
        torch.from_numpy(tables.offsets[1].copy()),
        torch.from_numpy(tables.slots[1].copy()),
        torch.from_numpy(tables.ends[1].copy()),
        heat2[0],
        heat2[1],
        received2,
    )
    assert torch.equal(chosen, chosen2)
    assert torch.equal(heat, heat2)
    assert torch.equal(received, received2)


def test_shares_hold_in_the_sum_over_ranks_and_steps():
    """One token of an expert per rank and step: only the offsets can spread them."""
    shape, topology = MoEShape(2, 4, 1), Topology(ranks=8, slots_per_rank=1)
    placement = Placement.default(shape, topology)
    shares = placement.even_shares().copy()
    shares[:, 0], shares[:, 4] = 0.25, 0.75
    tables = RoutingTables.build(placement.slot_to_expert, shares, 4)
    first = 0
    for rank in range(8):
        counted = Counted(tables, rank)
        for step in range(100):
            chosen = counted.route(torch.zeros((1, 1), dtype=torch.int64), step=step)
            first += int(chosen == 0)
    assert abs(first - 200) <= 16


def test_the_same_batch_and_step_give_the_same_slots_and_another_step_others():
    rng = np.random.default_rng(5)
    _, _, tables = random_tables(rng, 8, 16)
    counted = Counted(tables, rank=1)
    ids = random_ids(rng, 64, 8, 2)
    first, again = (counted.route(ids, step=4) for _ in range(2))
    other = counted.route(ids, step=5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.int32, torch.int64])
def test_any_dtype_and_strides_are_mapped_alike_and_nothing_compiles(dtype):
    warm_up()
    compiled = len(map_and_count.signatures)
    tables = RoutingTables.build(np.array([[0, 1, 2, 0]], np.int32), np.array([[0.5, 1, 1, 0.5]]), 3)
    wide_TK = torch.randint(0, 3, (40, 6))
    slots = []
    for ids_TK in (wide_TK[:, ::2].contiguous(), wide_TK.to(dtype)[:, ::2]):
        heat_KLE = torch.zeros((2, 1, 3), dtype=torch.int32)
        received_LP = torch.zeros((1, 4), dtype=torch.int32)
        router = Router(
            tables, rank=0, device=torch.device("cpu"), heat_KLE=heat_KLE, received_LP=received_LP
        )
        slots.append(router.route(0, ids_TK, step=1, num_tokens=40, num_decode=0))
        assert heat_KLE[0, 0].tolist() == wide_TK[:, ::2].flatten().bincount(minlength=3).tolist()
    assert slots[1].dtype == dtype
    assert torch.equal(slots[0], slots[1].long())
    assert len(map_and_count.signatures) == compiled


def test_tables_are_loaded_in_place():
    rng = np.random.default_rng(6)
    _, _, tables = random_tables(rng, 8, 16)
    _, _, others = random_tables(rng, 8, 16)
    counted = Counted(tables)
    addresses = [table.data_ptr() for table in counted.router._tables]
    ids = random_ids(rng, 64, 8, 2)
    before = counted.route(ids)
    counted.router.load(others)
    assert not torch.equal(counted.route(ids), before)
    assert torch.equal(counted.route(ids), Counted(others).route(ids))
    assert [table.data_ptr() for table in counted.router._tables] == addresses


def test_rows_end_at_one_whatever_was_rounded():
    content = np.array([[0, 0, 0, 1, EMPTY, 1]], np.int32)
    shares = np.array([[1 / 3, 1 / 3, 1 / 3, 1.0, 0.0, 0.0]])
    tables = RoutingTables.build(content, shares, 2)
    assert tables.offsets.tolist() == [[0, 3, 5]]
    assert tables.slots[0, :5].tolist() == [0, 1, 2, 3, 5]
    assert tables.ends[0, 2] == ONE
    assert tables.ends[0, 3:5].tolist() == [ONE, ONE]


def test_an_expert_that_nobody_serves_is_refused():
    with pytest.raises(ValueError, match="layer 0: expert 1 has no replica with a share"):
        RoutingTables.build(np.array([[0, 1]], np.int32), np.array([[1.0, 0.0]]), 2)
