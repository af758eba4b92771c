"""Routing: the choice by ordinal and the counts, on each implementation, against a plain oracle."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routed import Counted, layer_tables, oracle, random_ids, random_tables
from torch._subclasses.fake_tensor import FakeTensorMode

from isotherm.placement import Placement
from isotherm.router import Router, RoutingTables, device, kernels, warm_up
from isotherm.router.rounding import rounding_base
from isotherm.streams import backend_for
from isotherm.topology import MoEShape, Topology

cases = st.tuples(
    st.integers(0, 2**31), st.integers(4, 40), st.integers(0, 12), st.sampled_from([0, 1, 3, 50, 300])
)


def random_scalars(rng, tokens):
    """A rank, a step, a micro-batch, and which rows are real and decode: also none, and beyond the end."""
    first = int(rng.integers(tokens + 1)) if rng.random() < 0.5 else 0
    num = int(rng.integers(tokens + 3)) if rng.random() < 0.5 else tokens
    return {
        "step": int(rng.integers(10**6)),
        "micro_batch": int(rng.integers(2)),
        "first_token": first,
        "num_tokens": num,
        "num_decode": int(rng.choice([0, num, rng.integers(num + 1)])),
    }


def assert_counted(counted, ids, chosen, **scalars):
    """``chosen`` and all counts are the oracle's, and no other lane or layer holds any."""
    slots, heat, received = oracle(counted.tables, 1, ids, rank=counted.rank, **scalars)
    assert (chosen.long().numpy() == slots).all()
    lane = scalars["micro_batch"]
    assert (counted.heat[lane, :, 1].numpy() == heat).all()
    assert (counted.received[lane, 1].numpy() == received).all()
    assert int(counted.words.sum()) == heat.sum() + received.sum()


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
    named = (ids >= 0) & (ids < experts)
    assert ((chosen == -1) == ~named).all()
    assert (content[1][chosen[named]] == ids[named]).all()
    count_P = np.bincount(chosen[named], minlength=slots)
    count_E = np.bincount(ids[named], minlength=experts)
    expected_P = np.where(content[1] >= 0, count_E[np.maximum(content[1], 0)] * shares[1], 0)
    assert (np.abs(count_P - expected_P) < 1 + 1e-6).all()
    assert (count_P[shares[1] == 0] == 0).all()


@settings(max_examples=100, deadline=None)
@given(cases)
def test_slots_and_counts_are_the_oracles(case):
    seed, experts, redundant, tokens = case
    rng = np.random.default_rng(seed)
    _, _, tables = random_tables(rng, experts, experts + redundant)
    counted = Counted(tables, int(rng.integers(8)), micro_batches=2)
    dtype = torch.int32 if seed % 2 else torch.int64
    ids = random_ids(rng, tokens, experts, 3, dtype)
    scalars = random_scalars(rng, tokens)
    chosen = counted.route(ids, **scalars)
    assert chosen.dtype == dtype
    assert_counted(counted, ids, chosen, **scalars)


@settings(max_examples=60, deadline=None)
@given(cases, st.booleans())
def test_the_torch_operations_are_equal_bit_for_bit(case, as_tensors):
    seed, experts, redundant, tokens = case
    rng = np.random.default_rng(seed)
    _, _, tables = random_tables(rng, experts, experts + redundant)
    ids = random_ids(rng, tokens, experts, 3)
    scalars = random_scalars(rng, tokens)
    counted = Counted(tables, 5, micro_batches=2)
    base = rounding_base(1, 0, 5, scalars["micro_batch"])
    numbers = [scalars[name] for name in ("step", "first_token", "num_tokens", "num_decode")]
    if as_tensors:
        numbers = [torch.tensor([number]) for number in numbers]
    lane = scalars["micro_batch"]
    counts = counted.heat[lane, :, 1], counted.received[lane, 1]
    chosen = device.map_and_count(ids, numbers, base, layer_tables(tables, 1), *counts)
    assert_counted(counted, ids, chosen, **scalars)


@pytest.mark.parametrize("tokens", [2, 90])
def test_numbers_may_lie_in_tensors(tokens):
    rng = np.random.default_rng(3)
    _, _, tables = random_tables(rng, 12, 16)
    ids = random_ids(rng, tokens, 12, 3)
    counted = Counted(tables)
    numbers = {"first_token": 1, "num_tokens": tokens - 1, "num_decode": 1}
    held = {name: torch.tensor([number], dtype=torch.int32) for name, number in numbers.items()}
    chosen = counted.route(ids, **held)
    assert_counted(counted, ids, chosen, step=3, micro_batch=0, **numbers)


@pytest.mark.parametrize("tokens", [1, 7, 400])
@pytest.mark.parametrize("expert", [0, 5])
def test_one_expert_may_take_all(tokens, expert):
    rng = np.random.default_rng(4)
    _, _, tables = random_tables(rng, 6, 14)
    ids = torch.full((tokens, 2), expert)
    counted = Counted(tables)
    chosen = counted.route(ids)
    scalars = {"step": 3, "micro_batch": 0, "first_token": 0, "num_decode": 0}
    assert_counted(counted, ids, chosen, num_tokens=tokens, **scalars)


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


def test_shares_hold_in_the_sum_over_micro_batches():
    """Halves of a step must not round alike: at every rank, half of the pairs would go the same way."""
    tables = RoutingTables.build(np.zeros((2, 2), np.int32), np.full((2, 2), 0.5), 1)
    counted = Counted(tables, micro_batches=64)
    one = torch.zeros((1, 1), dtype=torch.int64)
    first = sum(int(counted.route(one, micro_batch=lane) == 0) for lane in range(64))
    assert abs(first - 32) <= 3


def test_the_same_batch_and_step_give_the_same_slots_and_another_step_others():
    rng = np.random.default_rng(5)
    _, _, tables = random_tables(rng, 8, 16)
    counted = Counted(tables, rank=1)
    ids = random_ids(rng, 64, 8, 2)
    first, again = (counted.route(ids, step=4) for _ in range(2))
    other = counted.route(ids, step=5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.uint8, torch.int32, torch.int64])
def test_any_dtype_and_strides_are_mapped_alike_and_nothing_compiles(dtype, tokens):
    warm_up()
    tables = RoutingTables.build(np.array([[0, 1, 2, 0]] * 2, np.int32), np.array([[0.5, 1, 1, 0.5]] * 2), 3)
    wide_TK = torch.randint(0, 3, (tokens, 6))
    for ids_TK in (
        wide_TK.to(dtype)[:, ::2].contiguous(),
        wide_TK.to(dtype)[:, ::2],
        wide_TK.to(dtype).T.contiguous().T[:, ::2],
    ):
        counted = Counted(tables)
        chosen = counted.route(ids_TK)
        assert chosen.dtype == dtype
        scalars = {"step": 3, "micro_batch": 0, "first_token": 0, "num_decode": 0}
        assert_counted(counted, ids_TK, chosen, num_tokens=tokens, **scalars)
    assert len(kernels.map_ids.signatures) == 1


def test_ids_too_narrow_for_the_slots_are_refused():
    _, _, tables = random_tables(np.random.default_rng(0), 100, 200)
    with pytest.raises(ValueError, match=r"int8.*200 slots"):
        Counted(tables).route(torch.zeros((1, 1), dtype=torch.int8))


def test_ids_on_another_device_are_refused():
    """Kernels are given addresses: one of another device would end the process."""
    _, _, tables = random_tables(np.random.default_rng(0), 4, 6)
    ids = torch.zeros((1, 1), dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="ids on meta given, the tables lie on cpu"):
        Counted(tables).route(ids)


@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 700])
def test_many_experts_on_both_sides_of_the_border_between_few_and_many_pairs(tokens):
    rng = np.random.default_rng(tokens)
    _, _, tables = random_tables(rng, 256, 288)
    counted = Counted(tables, 3, micro_batches=2)
    ids = random_ids(rng, tokens, 256, 8)
    for step in range(3):
        scalars = random_scalars(rng, tokens) | {"step": step}
        counted.words.zero_()
        assert_counted(counted, ids, counted.route(ids, **scalars), **scalars)


def test_two_threads_route_two_micro_batches_at_once():
    rng = np.random.default_rng(7)
    _, _, tables = random_tables(rng, 32, 48)
    counted = Counted(tables, micro_batches=2)
    batches = [random_ids(rng, tokens, 32, 4) for tokens in (3, 500)]
    repeats = 300
    chosen = [[], []]
    start = threading.Barrier(2)

    def work(lane):
        start.wait()
        chosen[lane] = [counted.route(batches[lane], micro_batch=lane) for _ in range(repeats)]

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lane, ids in enumerate(batches):
        scalars = {"step": 3, "first_token": 0, "num_tokens": len(ids), "num_decode": 0}
        slots, heat, received = oracle(tables, 1, ids, rank=0, micro_batch=lane, **scalars)
        assert all((slots == each.numpy()).all() for each in chosen[lane])
        assert (counted.heat[lane, :, 1].numpy() == repeats * heat).all()
        assert (counted.received[lane, 1].numpy() == repeats * received).all()


def test_totals_of_another_model_are_refused():
    _, _, tables = random_tables(np.random.default_rng(0), 4, 6)
    heat = torch.zeros((1, 2, 2, 4), dtype=torch.int32)
    with pytest.raises(
        ValueError, match=r"received_MLP is .*\(1, 2, 5\), these tables need int32 \(1, 2, 6\)"
    ):
        Router(
            tables,
            rank=0,
            backend=backend_for("cpu"),
            heat_MKLE=heat,
            received_MLP=torch.zeros((1, 2, 5), dtype=torch.int32),
        )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("size", "stride"),
    [((1, 6), (1, 1)), ((5, 1), (1, 9)), ((5, 1), (3, 1)), ((1, 1), (7, 7)), ((0, 4), (9, 9))],
)
def test_strides_of_axes_of_one_element_say_nothing_and_others_are_followed(size, stride, dtype):
    rng = np.random.default_rng(6)
    _, _, tables = random_tables(rng, 5, 8)
    memory = torch.arange(64).remainder(5).to(dtype)
    ids = memory.as_strided(size, stride)
    counted = Counted(tables)
    chosen = counted.route(ids)
    scalars = {"step": 3, "micro_batch": 0, "first_token": 0, "num_decode": 0}
    assert_counted(counted, ids, chosen, num_tokens=len(ids), **scalars)


def _fake_ids():
    with FakeTensorMode():
        return torch.zeros((2, 2), dtype=torch.int64)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.zeros(4, dtype=torch.int64), "Tensor"),
        (lambda: torch.zeros((2, 2, 2), dtype=torch.int32), "Tensor"),
        (_fake_ids, "FakeTensor"),
    ],
)
def test_ids_without_memory_or_of_other_axes_are_refused(make, kind):
    """A kernel that took them would read where nothing is."""
    _, _, tables = random_tables(np.random.default_rng(0), 4, 6)
    counted, ids = Counted(tables), make()
    with pytest.raises(ValueError, match=rf"ids of shape .* given, as {kind}: .*\[tokens, top_k\]"):
        counted.route(ids)
    assert not counted.words.any()
