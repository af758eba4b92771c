"""Heat by the node that owns the tokens, and the steps in which experts had any: against a plain count."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from test_collector import SHAPE as EIGHT
from test_collector import wait_for_gather

from buffers import held_buffers
from heat_ranks import SHAPE, beat_all, in_threads, make_ranks
from isotherm import HeatCollector, PeerMismatchError, Topology
from isotherm.testing.schedules import Seeded
from isotherm.testing.simulated import Simulation
from memory_link import memory_links
from ranks import run_ranks

LAYERS, EXPERTS, TOP_K = SHAPE.layers, SHAPE.experts, SHAPE.top_k
ASKED = {"active_steps": True, "source_heat": True}


def together(active_GLE, steps):
    """Steps in which any rank was active where ranks choose independently; halves are rounded up."""
    return np.floor(steps * (1 - (1 - active_GLE / steps).prod(axis=0)) + 0.500001).astype(int)


class Plain:
    """What each rank counts in each step, by numpy alone."""

    def __init__(self, ranks, layers=LAYERS, experts=EXPERTS):
        self.steps = []
        self.now_GLE = np.zeros((ranks, layers, experts), int)

    def count(self, rank, layer, ids):
        np.add.at(self.now_GLE[rank, layer], ids[ids >= 0], 1)

    def end_step(self):
        self.steps.append(self.now_GLE)
        self.now_GLE = np.zeros_like(self.now_GLE)

    def check(self, window, nodes):
        heat_TGLE = np.stack(self.steps[window.start_step : window.end_step])
        heat_GLE = heat_TGLE.sum(axis=0)
        by_node = heat_GLE.reshape(nodes, -1, *heat_GLE.shape[1:]).sum(axis=1)
        assert (window.source_heat_NLE == by_node).all()
        active_GLE = (heat_TGLE > 0).sum(axis=0)
        assert (window.active_steps_LE == together(active_GLE, window.steps)).all()
        alone = (heat_GLE > 0).sum(axis=0) <= 1
        truly = (heat_TGLE.sum(axis=1) > 0).sum(axis=0)
        assert (window.active_steps_LE[alone] == truly[alone]).all()
        assert (window.active_steps_LE >= active_GLE.max(axis=0)).all()
        assert (window.active_steps_LE <= np.minimum(active_GLE.sum(axis=0), window.steps)).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.sampled_from(["ids", "mapped"]), st.data())
def test_windows_tell_what_a_plain_count_tells(seed, count, source, data):
    """Rounds whenever they come, so windows of any length; dummy steps; two micro-batches of one step."""
    rng = np.random.default_rng(seed)
    ranks = make_ranks(count, source=source, micro_batches=2, nodes=count, **ASKED)
    plain = Plain(count)
    for _ in range(data.draw(st.integers(4, 12))):
        for number, rank in enumerate(ranks):
            for layer in range(LAYERS):
                for micro_batch in range(2):
                    ids = rng.integers(-1, EXPERTS, (int(rng.integers(3)), TOP_K))
                    plain.count(number, layer, ids)
                    rank.collector.count_ids(
                        layer, torch.from_numpy(ids), num_decode=1, micro_batch=micro_batch
                    )
            rank.end_step(2)
        plain.end_step()
        if data.draw(st.booleans()):
            beat_all(ranks)
    beat_all(ranks)
    assert ranks[0].windows
    for rank in ranks:
        for window in rank.windows:
            plain.check(window, count)
        rank.close()


def collect(rank, ranks):
    group = dist.new_group(backend="gloo")
    collector = HeatCollector(
        EIGHT,
        Topology(ranks=ranks, slots_per_rank=8, nodes=2),
        group,
        window_steps=8,
        heartbeat_seconds=0.002,
        **ASKED,
    )
    rng = np.random.default_rng(rank)
    plain = Plain(ranks, EIGHT.layers, EIGHT.experts)
    for _ in range(16):
        for layer in range(EIGHT.layers):
            ids = rng.integers(-1, 8, (int(rng.integers(3)), 2))
            plain.count(rank, layer, ids)
            collector.count_ids(layer, torch.from_numpy(ids))
        collector.end_step(num_tokens=1)
        plain.end_step()
        wait_for_gather(collector)
    windows = [collector.poll(), collector.poll()]
    collector.close()
    return plain.steps, windows


def test_real_ranks_tell_the_same(tmp_path):
    results = run_ranks(collect, 2, tmp_path, 2)
    plain = Plain(2, EIGHT.layers, EIGHT.experts)
    plain.steps = [sum(each) for each in zip(*(steps for steps, _ in results), strict=True)]
    for _, windows in results:
        assert [window.end_step for window in windows] == [8, 16]
        for window in windows:
            plain.check(window, 2)


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("asked", [{"active_steps": True}, {"source_heat": True}, ASKED])
def test_memory_is_what_was_said(asked, micro_batches):
    (rank,) = make_ranks(1, source="ids", micro_batches=micro_batches, **asked)
    topology = Topology(ranks=1, slots_per_rank=4)
    told = HeatCollector.memory(SHAPE, topology, micro_batches=micro_batches, **asked)
    tensors, arrays = held_buffers([rank.collector, rank.heartbeat], leave_out=[rank.heartbeat._link])
    assert (tensors, arrays) == (told.device_bytes + told.pinned_bytes, told.host_bytes)
    assert HeatCollector.memory(SHAPE, topology) != told
    rank.close()


def test_what_was_not_asked_for_is_not_told():
    (rank,) = make_ranks(1, source="ids", window_steps=1)
    rank.end_step()
    beat_all([rank])
    assert (rank.windows[0].active_steps_LE, rank.windows[0].source_heat_NLE) == (None, None)
    rank.close()


def test_a_device_marks_steps_as_the_cpu_does():
    with Simulation(Seeded(3)) as simulation:
        collector = HeatCollector(
            SHAPE, Topology(ranks=1, slots_per_rank=4), None, backend=simulation.backend, active_steps=True
        )
        ids = simulation.keep(torch.tensor([[0, 1], [1, -1]]).to(simulation.device))
        for step in range(4):
            if step != 2:
                collector.count_ids(step % 2, ids)
            collector.end_step(num_tokens=2)
        simulation.finish()
        found = collector.totals.active_LE.cpu().tolist()
        collector.close()
    assert found == [[1, 1, 0, 0], [2, 2, 0, 0]]


@pytest.mark.parametrize("name", ["active_steps", "source_heat"])
@pytest.mark.parametrize("arguments", [{"source": "received"}, {"on_device": True}])
def test_what_nobody_knows_is_refused(name, arguments):
    why = "source='received'" if "source" in arguments else "device_group"
    with pytest.raises(ValueError, match=f"{name} with {why}"):
        make_ranks(1, **{"source": "ids", name: True, **arguments})


def test_ranks_ask_for_the_same():
    told = []

    def ask(link):
        with pytest.raises(PeerMismatchError) as caught:
            HeatCollector(SHAPE, Topology(ranks=2, slots_per_rank=4), link, source_heat=link.rank == 1)
        told.append(str(caught.value))

    in_threads([partial(ask, link) for link in memory_links(2)])
    assert len(told) == 2
    assert all("source_heat" in each for each in told)


def test_links_send_as_much_for_any_number_of_steps():
    sent = []
    for steps in (1, 4):
        (rank,) = make_ranks(1, source="ids", window_steps=steps, **ASKED)
        for _ in range(steps):
            rank.end_step()
        before = rank.heartbeat._link.sent_bytes
        beat_all([rank])
        assert len(rank.windows) == 1
        sent.append(rank.heartbeat._link.sent_bytes - before)
        rank.close()
    assert sent[0] == sent[1]
