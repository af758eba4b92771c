"""HeatCollector alone, in real processes over gloo, against a plain count."""

import time

import numpy as np
import pytest
import torch
import torch.distributed as dist

from isotherm import HeatCollector, MoEShape, PeerMismatchError, Topology
from isotherm.streams import forward_waits
from ranks import run_ranks

SHAPE = MoEShape(3, 8, 2, layer_ids=(1, 2, 5))
STEPS = 24


def make_topology(ranks):
    return Topology(ranks=ranks, slots_per_rank=-(-(8 + ranks) // ranks))


def wait_for_gather(collector):
    """Holds the engine back until its snapshot is gathered, so that windows do not depend on time."""
    while collector.step % 4 == 0 and collector.gathered_step < collector.step:
        time.sleep(0.001)


def collect_ids(rank, ranks, inline):
    """Each rank counts its own ids; padding and dummy steps between them."""
    group = dist.new_group(backend="gloo")
    collector = HeatCollector(
        SHAPE, make_topology(ranks), group, window_steps=8, inline=inline, heartbeat_seconds=0.002
    )
    rng = np.random.default_rng(rank)
    heat = np.zeros((STEPS, 2, 3, 8), np.int64)
    windows = []
    for step in range(STEPS):
        tokens = 0 if step % 5 == rank else int(rng.integers(1, 30))
        decode = int(rng.integers(tokens + 1))
        for layer in range(3):
            ids = rng.integers(-1, 8, (tokens + 4, 2))
            for kind, rows in enumerate((ids[decode:tokens], ids[:decode])):
                np.add.at(heat[step, kind, layer], rows[rows >= 0], 1)
            collector.count_ids(layer, torch.from_numpy(ids), num_tokens=tokens, num_decode=decode)
        collector.end_step(num_tokens=tokens, num_decode=decode)
        wait_for_gather(collector)
    while (window := collector.poll()) is not None:
        windows.append(window)
    collector.close()
    return heat, windows, forward_waits()


@pytest.mark.parametrize(("ranks", "inline"), [(2, False), (3, True), (4, False)])
def test_ids_are_counted_exactly_and_alike_on_every_rank(tmp_path, ranks, inline):
    results = run_ranks(collect_ids, ranks, tmp_path, ranks, inline)
    heat = sum(result[0] for result in results)
    for _, windows, waits in results:
        assert waits == (STEPS if inline else 0)
        for window in windows:
            span = slice(window.start_step, window.end_step)
            assert (window.heat_KSLE.sum(1) == heat[span].sum(0)).all()
            assert window.layer_ids == (1, 2, 5)
        assert [window.slice_steps for window in windows] == [
            (first, first + 4, first + 8) for first in range(0, STEPS, 8)
        ]


def collect_received(rank, borrowed, cumulative):
    """Each rank counts what its slots received; the engine then overwrites what it lent."""
    group = dist.new_group(backend="gloo")
    topology = make_topology(2)
    collector = HeatCollector(SHAPE, topology, group, source="received", window_steps=8)
    rng = np.random.default_rng(rank)
    slots = np.zeros((3, topology.slots_per_rank), np.int64)
    for _ in range(8):
        for layer in range(3):
            counts = rng.integers(0, 50, topology.slots_per_rank)
            slots[layer] += counts
            given = torch.from_numpy(counts.cumsum() if cumulative else counts.copy())
            collector.count(layer, given, cumulative=cumulative, borrowed=borrowed)
            if borrowed:
                given.fill_(10**6)
        collector.end_step(num_tokens=5)
        wait_for_gather(collector)
    windows = [collector.poll()]
    assert collector.poll() is None
    collector.close()
    return slots, sum(w.slot_load_LGS for w in windows), sum(w.heat_LE for w in windows)


@pytest.mark.parametrize(("borrowed", "cumulative"), [(True, False), (False, True)])
def test_received_counts_are_folded_to_the_experts_of_their_slots(tmp_path, borrowed, cumulative):
    results = run_ranks(collect_received, 2, tmp_path, borrowed, cumulative)
    slots_LGS = np.stack([result[0] for result in results], axis=1)
    heat_LE = np.zeros((3, 8), np.int64)
    flat_LP = slots_LGS.reshape(3, -1)
    for slot in range(flat_LP.shape[1]):
        heat_LE[:, slot % 8] += flat_LP[:, slot]
    for _, loads_LGS, heat in results:
        assert (loads_LGS == slots_LGS).all()
        assert (heat == heat_LE).all()


def build_differently(rank):
    group = dist.new_group(backend="gloo")
    try:
        HeatCollector(SHAPE, make_topology(2), group, window_steps=8 if rank else 16)
    except PeerMismatchError as error:
        return str(error)
    return None


def test_a_rank_with_another_window_is_named(tmp_path):
    for message in run_ranks(build_differently, 2, tmp_path):
        assert "rank 1 was started with window_steps=8, rank 0 with window_steps=16" in message
