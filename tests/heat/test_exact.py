"""Every window of every rank against a plain count on main, over traffic that hypothesis makes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heat_ranks import SHAPE, beat_all, make_ranks
from isotherm.placement import Placement
from isotherm.streams.host import HostBackend

LAYERS, EXPERTS, TOP_K = SHAPE.layers, SHAPE.experts, SHAPE.top_k
SLOTS_PER_RANK = 3


class QueueingBackend(HostBackend):
    """Host streams that ask for small work too, as a device's do: owned counts go to the worker thread."""

    queues_work = True


class Oracle:
    """Counts of all ranks by step, made on the calling thread with numpy alone."""

    def __init__(self, ranks, steps, slots):
        self.heat = np.zeros((steps, 2, LAYERS, EXPERTS), np.int64)
        self.loads = np.zeros((steps, LAYERS, ranks, slots), np.int64)
        self.tokens = np.zeros((steps, 2), np.int64)

    def check(self, ranks, *, loads):
        assert ranks[0].windows, "no window was made: nothing was compared"
        for rank in ranks:
            assert len(rank.windows) == len(ranks[0].windows)
            begins = 0
            for window, first in zip(rank.windows, ranks[0].windows, strict=True):
                assert window.start_step == begins
                assert window.slice_steps == first.slice_steps
                for index, (begin, end) in enumerate(
                    zip(window.slice_steps, window.slice_steps[1:], strict=False)
                ):
                    assert (window.heat_KSLE[:, index] == self.heat[begin:end].sum(0)).all()
                span = slice(window.start_step, window.end_step)
                assert (window.tokens_K == self.tokens[span].sum(0)).all()
                if loads:
                    assert (window.slot_load_LGS == self.loads[span].sum(0)).all()
                else:
                    assert window.slot_load_LGS is None
                begins = window.end_step


def random_placement(rng, slots):
    """Every expert somewhere, the other slots anything, in an order of their own in each layer."""
    rows = [
        rng.permutation(np.concatenate([np.arange(EXPERTS), rng.integers(0, EXPERTS, slots - EXPERTS)]))
        for _ in range(LAYERS)
    ]
    return Placement(np.stack(rows), EXPERTS)


def close(ranks):
    for rank in ranks:
        rank.close()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([HostBackend, QueueingBackend]), st.data())
def test_received_counts_go_to_the_experts_that_served_them(seed, backend, data):
    """Contents change on each rank at a step of its own, counts are lent and handed over, plain and
    running, of both kinds, rounds and snapshots come whenever they come."""
    rng = np.random.default_rng(seed)
    count, steps = 2, 14
    slots = count * SLOTS_PER_RANK
    start = random_placement(rng, slots)
    ranks = make_ranks(
        count, slots_per_rank=SLOTS_PER_RANK, source="received", placement=start, backend=backend()
    )
    oracle = Oracle(count, steps, SLOTS_PER_RANK)
    held = [start] * count
    for step in range(steps):
        for number, rank in enumerate(ranks):
            if data.draw(st.integers(0, 3)) == 0:
                held[number] = random_placement(rng, slots)
                rank.collector.load_placement(held[number])
            local = slice(number * SLOTS_PER_RANK, (number + 1) * SLOTS_PER_RANK)
            for _ in range(data.draw(st.integers(0, 4))):
                layer, kind = rng.integers(LAYERS), rng.integers(2)
                counts = rng.integers(0, 50, SLOTS_PER_RANK)
                borrowed, cumulative = bool(rng.integers(2)), bool(rng.integers(2))
                given_S = torch.from_numpy(counts.cumsum() if cumulative else counts.copy())
                given_S = given_S.to([torch.int64, torch.int32][rng.integers(2)])
                rank.collector.count(
                    int(layer),
                    given_S,
                    cumulative=cumulative,
                    borrowed=borrowed,
                    kind=("prefill", "decode")[kind],
                )
                if borrowed:
                    given_S.fill_(10**6)  # the engine's own again
                np.add.at(oracle.heat[step, kind, layer], held[number].slot_to_expert[layer, local], counts)
                oracle.loads[step, layer, number] += counts
            rank.end_step(0)
        if data.draw(st.booleans()):
            beat_all(ranks)
    beat_all(ranks)
    oracle.check(ranks, loads=True)
    close(ranks)


def make_ids(rng, rows):
    """Ids with some that name nobody, of any integer dtype, whole or a strided view."""
    ids = torch.from_numpy(rng.integers(-1, EXPERTS, (rows, TOP_K)))
    ids = ids.to([torch.int64, torch.int32, torch.int16][rng.integers(3)])
    if rng.integers(2):
        return ids, ids.numpy()
    wide = torch.zeros((TOP_K, 2 * rows), dtype=ids.dtype)
    wide[:, ::2] = ids.T
    return wide[:, ::2].T, ids.numpy()


def as_given(rng, number):
    """A plain number, or one that lives on the device."""
    if rng.integers(2):
        return int(number)
    return torch.tensor([number], dtype=[torch.int64, torch.int32][rng.integers(2)])


def add_rows(heat_KE, ids, first, num_tokens, num_decode):
    for kind, rows in (
        (1, ids[first : first + num_decode]),
        (0, ids[first + num_decode : first + num_tokens]),
    ):
        np.add.at(heat_KE[kind], rows[rows >= 0], 1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.data())
def test_ids_count_once_at_their_owner(seed, data):
    """Own batches with padding behind, and batches of all ranks of which each counts its own part, in one
    or two micro-batches; dummy steps on any rank; no token, one token, one expert taking all."""
    rng = np.random.default_rng(seed)
    count, steps = 3, 8
    ranks = make_ranks(count, slots_per_rank=2, source="ids", micro_batches=2)
    oracle = Oracle(count, steps, 2)
    for step in range(steps):
        replicated = data.draw(st.booleans())
        tokens_G = rng.integers(0, 9, count) * rng.integers(0, 2, count)
        if data.draw(st.booleans()):
            tokens_G[rng.integers(count)] = 1
        shared = [make_ids(rng, int(tokens_G.sum())) for _ in range(LAYERS)]
        for number, rank in enumerate(ranks):
            tokens = int(tokens_G[number])
            decode = int(rng.integers(tokens + 1))
            for layer in range(LAYERS):
                given_TK, ids = shared[layer] if replicated else make_ids(rng, tokens + 3)
                if data.draw(st.integers(0, 9)) == 0 and not replicated:
                    given_TK, ids = torch.full_like(given_TK, 3), np.full_like(ids, 3)
                first = int(tokens_G[:number].sum()) if replicated else 0
                add_rows(oracle.heat[step, :, layer], ids, first, tokens, decode)
                half = int(rng.integers(tokens + 1))
                parts = ((0, first, half), (1, first + half, tokens - half))
                for micro_batch, begin, part in parts:
                    rank.collector.count_ids(
                        layer,
                        given_TK,
                        first_token=as_given(rng, begin),
                        num_tokens=as_given(rng, part),
                        num_decode=as_given(rng, min(max(decode - (begin - first), 0), part)),
                        micro_batch=micro_batch,
                    )
            oracle.tokens[step] += (tokens - decode, decode)
            if rng.integers(2):
                rank.collector.end_step(num_tokens=tokens, num_decode=decode)
            else:
                rank.collector.end_step(num_tokens=torch.tensor([tokens]), num_decode=as_given(rng, decode))
            rank.land()
        if data.draw(st.booleans()):
            beat_all(ranks)
    beat_all(ranks)
    oracle.check(ranks, loads=False)
    close(ranks)


def test_micro_batches_of_two_threads_lose_nothing():
    """Two threads count the same layers at once, again and again."""
    (rank,) = make_ranks(1, slots_per_rank=4, source="ids", micro_batches=2)
    rng = np.random.default_rng(0)
    oracle = Oracle(1, 4, 4)
    batches = rng.integers(0, EXPERTS, (4, 2, LAYERS, 200, TOP_K))
    for step in range(4):

        def count(micro_batch, step=step):
            for _ in range(20):
                for layer in range(LAYERS):
                    ids = torch.from_numpy(batches[step, micro_batch, layer])
                    rank.collector.count_ids(layer, ids, micro_batch=micro_batch)

        threads = [threading.Thread(target=count, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for layer in range(LAYERS):
            np.add.at(oracle.heat[step, 0, layer], batches[step, :, layer].ravel(), 20)
        oracle.tokens[step, 0] = 400
        rank.end_step(400)
        beat_all([rank])
    oracle.check([rank], loads=False)
    rank.close()


@pytest.mark.parametrize("source", ["ids", "mapped"])
def test_received_counts_are_refused_where_ids_are_counted(source):
    (rank,) = make_ranks(1, source=source)
    with pytest.raises(ValueError, match=f"built with source='{source}'"):
        rank.collector.count(0, torch.zeros(4, dtype=torch.int64))
    rank.close()


def test_counts_of_another_number_of_slots_are_refused():
    (rank,) = make_ranks(1, source="received")
    with pytest.raises(ValueError, match="this rank has 4 slots"):
        rank.collector.count(0, torch.zeros(5, dtype=torch.int64))
    rank.close()


def test_a_callback_that_raises_is_logged_once_and_ends_nothing(caplog):
    (rank,) = make_ranks(1, source="ids", window_steps=1)
    seen = []

    def fail(window):
        seen.append(window)
        raise RuntimeError("of the engine's own making")

    rank.collector.on_window(fail)
    for _ in range(3):
        rank.end_step()
        beat_all([rank])
    assert len(seen) == 3
    assert caplog.text.count("on_window's callback raised") == 1
    rank.close()


def test_a_window_counted_by_expert_says_that_it_knows_no_loads():
    (rank,) = make_ranks(1, source="ids", window_steps=1)
    rank.end_step()
    beat_all([rank])
    with pytest.raises(ValueError, match="this window knows no loads"):
        _ = rank.windows[0].load_LG
    rank.close()
