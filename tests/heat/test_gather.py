"""Windows against a plain count, with ranks in threads over an in-memory link."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isotherm.control import Heartbeat
from isotherm.heat.gather import HeatGather
from isotherm.heat.snapshots import SnapshotRing
from isotherm.heat.totals import Totals
from isotherm.streams import backend_for
from isotherm.topology import MoEShape, Topology
from memory_link import memory_links

SHAPE = MoEShape(2, 4, 2, layer_ids=(3, 7))


class Rank:
    """One rank's real totals, snapshots and gather, stepped by hand."""

    def __init__(self, link, topology, window_steps=2, buffers=4):
        backend = backend_for("cpu")
        self.backend, self.link, self.windows = backend, link, []
        self.side = backend.side_stream(f"heat-{link.rank}")
        self.totals = Totals(SHAPE, topology, backend.device)
        self.ring = SnapshotRing(self.totals.flat, backend, buffers)
        self.tokens = 0
        self.gather = HeatGather(
            SHAPE, topology, self.totals, self.ring, window_steps=window_steps, deliver=self.windows.append
        )
        self.heartbeat = Heartbeat(link, [self.gather], interval_seconds=1)

    def count(self, heat_KLE, slots_LP, tokens):
        self.totals.heat_KLE += torch.from_numpy(heat_KLE.astype(np.int32))
        self.totals.slots_LP += torch.from_numpy(slots_LP.astype(np.int32))
        self.tokens += tokens

    def snapshot(self, step):
        main = self.backend.main_stream()
        taken = self.ring.try_take(step, (self.tokens, 0), main, self.side)
        self.side.synchronize()
        return taken

    def close(self):
        self.side.close()


def beat_all(ranks):
    threads = [threading.Thread(target=rank.heartbeat.beat) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def make_ranks():
    made = []

    def make(count, **kwargs):
        topology = Topology(ranks=count, slots_per_rank=4)
        made.extend(Rank(link, topology, **kwargs) for link in memory_links(count))
        return made[-count:]

    yield make
    for rank in made:
        rank.close()


def some_counts(rng, ranks, high=1000):
    return rng.integers(0, high, (2, 2, 4)), rng.integers(0, high, (2, 4 * ranks))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.data())
def test_windows_add_up_whatever_is_skipped_and_whenever_rounds_come(seed, count, data):
    """Ranks pass snapshot steps at different times, rounds come at any time: nothing is lost."""
    rng = np.random.default_rng(seed)
    topology = Topology(ranks=count, slots_per_rank=4)
    ranks = [Rank(link, topology, buffers=2) for link in memory_links(count)]
    totals_at = {0: np.zeros(2 * 2 * 4 + 2 * 4 * count, np.int64)}
    counted = [[None] * 13 for _ in ranks]
    for step in range(1, 13):
        total = totals_at[step - 1].copy()
        for rank in range(count):
            heat, slots = some_counts(rng, count)
            counted[rank][step] = (heat, slots)
            total += np.concatenate([heat.ravel(), slots.ravel()])
        totals_at[step] = total
    done = [0] * count
    while min(done) < 12:
        rank = data.draw(st.integers(-1, count - 1))
        if rank < 0:
            beat_all(ranks)
        elif done[rank] < 12:
            done[rank] += 1
            ranks[rank].count(*counted[rank][done[rank]], tokens=1)
            ranks[rank].snapshot(done[rank])
    beat_all(ranks)
    beat_all(ranks)
    for window_index, window in enumerate(ranks[0].windows):
        for rank in ranks:
            assert rank.windows[window_index].slice_steps == window.slice_steps
            assert (rank.windows[window_index].heat_KSLE == window.heat_KSLE).all()
        expected = totals_at[window.end_step] - totals_at[window.start_step]
        flat = np.concatenate([window.heat_KSLE.sum(1).ravel(), window.slot_load_LGS.ravel()])
        assert (flat == expected).all()
        assert window.layer_ids == (3, 7)
        assert window.tokens_K.tolist() == [count * window.steps, 0]
    ends = [0, *(window.end_step for window in ranks[0].windows)]
    assert ends == [*(window.start_step for window in ranks[0].windows), ends[-1]]
    for rank in ranks:
        rank.close()


def test_totals_that_wrap_at_two_to_the_32_make_right_differences(make_ranks):
    ranks = make_ranks(2, window_steps=1)
    for rank in ranks:
        rank.totals.flat.fill_(-5)  # 2^32 - 5, read as unsigned
        rank.gather._base[:] = -5
    rng = np.random.default_rng(0)
    counts = [some_counts(rng, 2) for _ in ranks]
    for rank, (heat, slots) in zip(ranks, counts, strict=True):
        rank.count(heat, slots, tokens=10)
        rank.snapshot(2)
    beat_all(ranks)
    window = ranks[1].windows[-1]
    assert (window.heat_KSLE[:, 0] == sum(heat for heat, _ in counts)).all()
    assert (window.slot_load_LGS.reshape(2, 8) == sum(slots for _, slots in counts)).all()


def test_sums_beyond_four_bytes_travel_in_eight(make_ranks):
    ranks = make_ranks(2, window_steps=1)
    for rank in ranks:
        heat, slots = np.zeros((2, 2, 4), np.int64), np.zeros((2, 8), np.int64)
        heat[0, 1, 2] = 2**31 - 1
        rank.count(heat, slots, tokens=2**31 - 1)
        rank.snapshot(1)
    beat_all(ranks)
    assert ranks[0].windows[0].heat_KSLE[0, 0, 1, 2] == 2 * (2**31 - 1)
    assert ranks[0].windows[0].tokens_K[0] == 2 * (2**31 - 1)


def test_a_full_ring_skips_and_loses_nothing(make_ranks):
    (rank,) = make_ranks(1, window_steps=1, buffers=2)
    rng = np.random.default_rng(1)
    total = np.zeros((2, 2, 4), np.int64)
    for step in range(1, 6):
        heat, slots = some_counts(rng, 1)
        total += heat
        rank.count(heat, slots, tokens=1)
        assert rank.snapshot(step) == (step <= 2)
    assert rank.ring.skipped == 3
    beat_all([rank])
    assert rank.snapshot(6)
    beat_all([rank])
    assert [window.slice_steps for window in rank.windows] == [(0, 2), (2, 6)]
    assert (sum(window.heat_KSLE.sum(1) for window in rank.windows) == total).all()


def test_an_empty_window_is_zero_and_finite(make_ranks):
    ranks = make_ranks(2, window_steps=1)
    for rank in ranks:
        rank.snapshot(4)
    beat_all(ranks)
    window = ranks[0].windows[0]
    assert not window.heat_KSLE.any()
    assert window.tokens_K.tolist() == [0, 0]
