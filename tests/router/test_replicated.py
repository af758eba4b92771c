"""Replicated dispatch: every rank maps every token, and each pair is computed exactly once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routed import random_ids, random_tables

from isotherm.router import Router, RoutingTables
from isotherm.streams import backend_for

RANKS, SIZE, EXPERTS = 4, 6, 16


def make(tables, rank, dispatch="replicated", micro_batches=2):
    layers = len(tables.slots)
    heat = torch.zeros((micro_batches, 2, layers, EXPERTS), dtype=torch.int32)
    received = torch.zeros((micro_batches, layers, RANKS * SIZE), dtype=torch.int32)
    router = Router(
        tables,
        rank=rank,
        backend=backend_for("cpu"),
        heat_MKLE=heat,
        received_MLP=received,
        dispatch=dispatch,
    )
    return router, heat, received


def tables_of(rng, levels):
    content, shares, tables = random_tables(rng, EXPERTS, RANKS * SIZE)
    if levels:
        tables = RoutingTables.build(content, shares, EXPERTS, np.zeros((2, RANKS)))
    return content, tables


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([1, 6, 40]))
def test_each_pair_is_computed_once_and_counted_by_its_owner(seed, levels, tokens):
    """Each rank keeps the pairs whose slot is its own; together they are all pairs, each once."""
    rng = np.random.default_rng(seed)
    content, tables = tables_of(rng, levels)
    ids = [random_ids(rng, RANKS * tokens, EXPERTS, 3) for _ in range(2)]
    step = int(rng.integers(1000))
    kept = [torch.zeros(each.shape, dtype=torch.int64) for each in ids]
    heat, received = 0, 0
    for rank in range(RANKS):
        router, heat_MKLE, received_MLP = make(tables, rank)
        for lane in range(2):
            chosen = router.route(
                1,
                ids[lane],
                step=step,
                first_token=rank * tokens,
                num_tokens=tokens,
                num_decode=tokens // 2,
                micro_batch=lane,
            )
            mine = (chosen >= 0) & (chosen // SIZE == rank)
            assert (content[1][chosen[mine].numpy()] == ids[lane][mine].numpy()).all()
            kept[lane] += mine
        heat, received = heat + heat_MKLE, received + received_MLP
    for lane in range(2):
        named = (ids[lane] >= 0) & (ids[lane] < EXPERTS)
        assert torch.equal(kept[lane], named.long())
        known = np.bincount(ids[lane][named].numpy(), minlength=EXPERTS)
        assert (heat[lane, :, 1].sum(0).numpy() == known).all()
        assert int(received[lane, 1].sum()) == int(named.sum())


def test_captured_and_called_regions_of_all_ranks_choose_alike():
    rng = np.random.default_rng(2)
    _, tables = tables_of(rng, levels=False)
    ids = random_ids(rng, 50, EXPERTS, 3)
    numbers = {"step": 9, "first_token": 10, "num_tokens": 20, "num_decode": 5}
    state = torch.tensor(list(numbers.values()))
    torch._dynamo.reset()
    answers, counts = [], []
    for rank in (1, 3):
        called, *called_counts = make(tables, rank)
        answers.append(called.route(1, ids, micro_batch=1, **numbers))
        captured, *captured_counts = make(tables, rank)
        region = torch.compile(
            lambda ids, state, router=captured: router.route_captured(1, ids, state, micro_batch=1),
            fullgraph=True,
            backend="aot_eager",
        )
        answers.append(region(ids, state))
        counts += [called_counts, captured_counts]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    for other in counts[1:]:
        assert all(torch.equal(a, b) for a, b in zip(counts[0], other))


def test_the_device_path_chooses_as_the_host_does():
    rng = np.random.default_rng(3)
    _, tables = tables_of(rng, levels=False)
    ids = random_ids(rng, 50, EXPERTS, 3)
    numbers = {"step": 9, "first_token": 10, "num_tokens": 20, "num_decode": 5}
    host, *_ = make(tables, 1)
    device, *_ = make(tables, 3)
    device._kernel = None
    assert torch.equal(host.route(1, ids, **numbers), device.route(1, ids, **numbers))


def test_ranks_that_decide_for_their_own_tokens_round_apart():
    """What the kind of dispatch is for: by senders, ranks with equal batches do not choose alike."""
    rng = np.random.default_rng(4)
    _, tables = tables_of(rng, levels=False)
    ids = random_ids(rng, 50, EXPERTS, 3)
    numbers = {"step": 9, "num_tokens": 50, "num_decode": 0}
    chosen = [make(tables, rank, "sender")[0].route(1, ids, **numbers) for rank in range(8)]
    assert not all(torch.equal(each, chosen[0]) for each in chosen)


def test_an_unknown_kind_is_refused():
    _, tables = tables_of(np.random.default_rng(5), levels=False)
    with pytest.raises(ValueError, match="dispatch='broadcast' is unknown: choose sender or replicated"):
        make(tables, 0, "broadcast")
