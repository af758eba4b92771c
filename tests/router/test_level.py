"""Batches levelled by their own counts: never worse than shares, near the linear program, counted exactly."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routed import Counted, random_ids
from scipy.optimize import linprog

from isotherm.router import Router, RoutingTables
from isotherm.router.tables import OTHERS_ONE
from isotherm.streams.host import HostBackend
from isotherm.topology import MoEShape, Topology

cases = st.tuples(st.integers(0, 2**31), st.integers(2, 6), st.integers(2, 5), st.sampled_from([8, 40, 300]))


def random_placed(rng, experts, ranks, size):
    """The expert in each slot, every one of them somewhere, and shares of which some are 0."""
    content_P = np.concatenate([np.arange(experts), rng.integers(0, experts, ranks * size - experts)])
    content_P = rng.permutation(content_P)
    share_P = rng.random(len(content_P)) * (rng.random(len(content_P)) < 0.9)
    for expert in range(experts):
        (slots,) = np.nonzero(content_P == expert)
        share_P[slots[0]] += 1e-3
        share_P[slots] /= share_P[slots].sum()
    return content_P.astype(np.int32), share_P


def make(rng, experts, ranks, size, others_G=None, rank=1):
    """A router that levels, one that splits by shares, and what both are made of."""
    content_P, share_P = random_placed(rng, experts, ranks, size)
    others_G = rng.random(ranks) * 3 / ranks if others_G is None else np.asarray(others_G, float)
    both = [
        RoutingTables.build(np.tile(content_P, (2, 1)), np.tile(share_P, (2, 1)), experts, others_LG)
        for others_LG in (np.tile(others_G, (2, 1)), None)
    ]
    levels, splits = (Counted(tables, rank, micro_batches=2) for tables in both)
    return levels, splits, content_P, share_P, np.rint(others_G * OTHERS_ONE).astype(np.int64)


def loads(chosen, others_G, ranks, size, pairs):
    """What each rank carries by what is known: of this batch, and of the others."""
    slots = chosen.numpy().ravel()
    own_G = np.bincount(slots[slots >= 0] // size, minlength=ranks)
    return ((others_G * pairs) >> 20) + own_G


@settings(max_examples=80, deadline=None)
@given(cases)
def test_the_hottest_rank_is_never_hotter_than_by_shares_and_every_pair_is_served(case):
    seed, ranks, size, tokens = case
    rng = np.random.default_rng(seed)
    experts = int(rng.integers(2, ranks * size + 1))
    levels, splits, content_P, share_P, others_G = make(rng, experts, ranks, size)
    ids = random_ids(rng, tokens, experts, 2)
    step = int(rng.integers(1000))
    chosen, by_shares = levels.route(ids, step=step), splits.route(ids, step=step)
    valid = (ids >= 0) & (ids < experts)
    assert torch.equal(chosen >= 0, valid)
    assert (content_P[chosen[valid].numpy()] == ids[valid].numpy()).all()
    assert (share_P[chosen[valid].numpy()] > 0).all()
    hottest, before = (loads(each, others_G, ranks, size, ids.numel()).max() for each in (chosen, by_shares))
    assert hottest <= before


@settings(max_examples=60, deadline=None)
@given(cases)
def test_what_is_counted_is_what_was_chosen(case):
    seed, ranks, size, tokens = case
    rng = np.random.default_rng(seed)
    experts = int(rng.integers(2, ranks * size + 1))
    levels, *_ = make(rng, experts, ranks, size)
    dtype = torch.int32 if seed % 2 else torch.int64
    ids = random_ids(rng, tokens, experts, 2, dtype)
    first, num = int(rng.integers(tokens)), int(rng.integers(tokens + 1))
    decode = int(rng.integers(num + 1))
    chosen = levels.route(ids, num, decode, first_token=first, micro_batch=1)
    real, names = chosen[first : first + num], ids[first : first + num]
    received = np.bincount(real[real >= 0].long(), minlength=ranks * size)
    assert (levels.received[1, 1].numpy() == received).all()
    for kind, rows in ((1, names[:decode]), (0, names[decode:])):
        known = rows[(rows >= 0) & (rows < experts)].long()
        assert (levels.heat[1, kind, 1].numpy() == np.bincount(known, minlength=experts)).all()
    assert not levels.words[0].any()


def least_peak(count_E, content_P, share_P, others_G, pairs, size):
    """The load of the hottest rank under the best split of these counts, tokens divisible: HiGHS."""
    slots, ranks = len(content_P), len(others_G)
    carried = np.zeros((ranks, slots + 1))
    for slot, expert in enumerate(content_P):
        carried[slot // size, slot] = count_E[expert]
    carried[:, slots] = -1
    whole = np.zeros((len(count_E), slots + 1))
    whole[content_P, np.arange(slots)] = 1
    bounds = [(0, 1 if share > 0 else 0) for share in share_P] + [(0, None)]
    found = linprog(
        np.eye(slots + 1)[slots], carried, -((others_G * pairs) >> 20), whole, np.ones(len(count_E)), bounds
    )
    assert found.status == 0
    return found.fun


def test_what_shares_leave_above_the_optimum_of_the_batch_is_nearly_all_taken_off():
    rng = np.random.default_rng(0)
    left = taken = 0.0
    for _ in range(30):
        levels, splits, content_P, share_P, others_G = make(rng, 24, 8, 5)
        ids = random_ids(rng, 200, 24, 3)
        known = ids[(ids >= 0) & (ids < 24)].numpy()
        least = least_peak(np.bincount(known, minlength=24), content_P, share_P, others_G, ids.numel(), 5)
        peak, before = (
            loads(each.route(ids), others_G, 8, 5, ids.numel()).max() for each in (levels, splits)
        )
        assert peak >= least - 1e-6
        left, taken = left + peak - least, taken + before - least
    assert left < 0.1 * taken


def test_one_expert_is_split_as_well_as_whole_tokens_can_be():
    """Against every split there is."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        others_G = rng.random(3)
        content = np.tile(np.array([0, 1, 0, 2, 0, 3], np.int32), (2, 1))
        shares = np.tile(np.array([0.5, 1, 0.3, 1, 0.2, 1]), (2, 1))
        counted = Counted(RoutingTables.build(content, shares, 4, np.tile(others_G, (2, 1))))
        ids = torch.from_numpy(rng.choice(4, (12, 1), p=[0.7, 0.1, 0.1, 0.1]))
        count_E = np.bincount(ids.numpy().ravel(), minlength=4)
        fixed_G = ((np.rint(others_G * OTHERS_ONE).astype(np.int64) * 12) >> 20) + count_E[1:]
        splits = [s for s in itertools.product(range(count_E[0] + 1), repeat=3) if sum(s) == count_E[0]]
        best = min(int((fixed_G + split).max()) for split in splits)
        own_G = np.bincount(counted.route(ids).numpy().ravel() // 2, minlength=3)
        assert (fixed_G - count_E[1:] + own_G).max() == best


def test_a_rank_that_the_others_fill_receives_nothing_that_another_can_take():
    content = np.array([[0, 1, 0, 2]] * 2, np.int32)
    shares = np.array([[0.9, 1, 0.1, 1]] * 2)
    ids = torch.tensor([[0], [0], [0], [1], [2]])
    for others_G, wanted in (([5.0, 0.0], 0), ([0.0, 5.0], 3)):
        tables = RoutingTables.build(content, shares, 3, np.array([others_G] * 2))
        assert int((Counted(tables).route(ids) == 0).sum()) == wanted


def test_what_a_full_rank_does_not_take_the_others_share_evenly():
    content = np.array([[0, 1, 0, 2, 0, 3]] * 2, np.int32)
    shares = np.array([[0.1, 1, 0.2, 1, 0.7, 1]] * 2)
    tables = RoutingTables.build(content, shares, 4, np.array([[0.0, 0.0, 1.5]] * 2))
    chosen = Counted(tables).route(torch.zeros((8, 1), dtype=torch.int64))
    assert np.bincount(chosen.numpy().ravel(), minlength=6).tolist() == [4, 0, 4, 0, 0, 0]


def test_of_two_replicas_on_one_rank_the_rank_is_what_counts():
    content = np.array([[0, 0, 0, 1]] * 2, np.int32)
    shares = np.array([[0.4, 0.4, 0.2, 1]] * 2)
    tables = RoutingTables.build(content, shares, 2, np.zeros((2, 2)))
    chosen = Counted(tables).route(torch.tensor([[0]] * 9 + [[1]]))
    assert np.bincount(chosen.numpy().ravel() // 2, minlength=2).tolist() == [5, 5]


def test_odd_tokens_do_not_all_go_to_the_first_replica():
    tables = RoutingTables.build(np.zeros((2, 2), np.int32), np.full((2, 2), 0.5), 1, np.zeros((2, 2)))
    first = sum(
        int(Counted(tables, rank).route(torch.zeros((1, 1), dtype=torch.int64), step=step) == 0)
        for rank in range(8)
        for step in range(16)
    )
    assert 48 <= first <= 80


def test_a_captured_region_levels_as_a_call_does():
    rng = np.random.default_rng(5)
    levels, *_ = make(rng, 12, 4, 5)
    ids = random_ids(rng, 90, 12, 3)
    captured, *_ = make(np.random.default_rng(5), 12, 4, 5)
    chosen = captured.router.route_captured(1, ids, torch.tensor((3, 0, 90, 4)), micro_batch=1)
    assert torch.equal(chosen, levels.route(ids, 90, 4, micro_batch=1))
    assert torch.equal(captured.words, levels.words)


def test_few_pairs_are_split_by_shares():
    rng = np.random.default_rng(6)
    levels, splits, *_ = make(rng, 30, 8, 5)
    for step in range(20):
        ids = random_ids(rng, 4, 30, 3)
        assert torch.equal(levels.route(ids, step=step), splits.route(ids, step=step))


def test_tables_of_the_other_kind_are_refused():
    levels, splits, *_ = make(np.random.default_rng(7), 12, 4, 5)
    with pytest.raises(ValueError, match=r"0 ranks to level given, this router has .* and 4"):
        levels.router.try_stage(splits.tables)


def test_an_accelerator_is_told_that_it_cannot():
    backend = HostBackend()
    backend.device = torch.device("meta")
    levels, *_ = make(np.random.default_rng(8), 12, 4, 5)
    with pytest.raises(ValueError, match=r"level each batch given for meta.*choose split='shares' or 'near'"):
        Counted(levels.tables, backend=backend)


def test_new_tables_level_by_what_they_say_of_the_others():
    content, shares = np.array([[0, 1, 0, 2]] * 2, np.int32), np.array([[0.9, 1, 0.1, 1]] * 2)
    before, after = (
        RoutingTables.build(content, shares, 3, np.array([others_G] * 2)) for others_G in ([9.0, 0], [0, 9.0])
    )
    counted, ids = Counted(before), torch.tensor([[0]] * 4)
    assert set(counted.route(ids).ravel().tolist()) == {2}
    counted.router.load(counted.router.try_stage(after))
    assert set(counted.route(ids).ravel().tolist()) == {0}


def test_memory_knows_of_the_loads():
    shape, topology = MoEShape(2, 8, 2), Topology(ranks=4, slots_per_rank=4)
    plain, more = (Router.memory(shape, topology, 3, levels_batches=each) for each in (False, True))
    assert more.device_bytes - plain.device_bytes == 8 * 2 * 4
    assert more.host_bytes - plain.host_bytes == 3 * 8 * 4
