"""A side stream that failed: the engine goes on, and the heartbeat says so."""

import time

import pytest
import torch

from heat_ranks import MemoryDeviceGroup, make_ranks
from isotherm import Placement, StreamError
from isotherm.heat.received import _is_over
from isotherm.streams.host import HostBackend


class QueueingBackend(HostBackend):
    queues_work = True


class BrokenGroup(MemoryDeviceGroup):
    def all_reduce(self, tensor):
        raise RuntimeError("a peer is gone")


def test_the_engine_goes_on_when_the_side_stream_has_failed(monkeypatch):
    monkeypatch.setattr(MemoryDeviceGroup, "all_reduce", BrokenGroup.all_reduce)
    (rank,) = make_ranks(1, source="received", on_device=True, backend=QueueingBackend())
    failures = []
    rank.heartbeat._on_failure = lambda name, error: failures.append(error)
    other = Placement(rank_content(), 4)

    def step():
        rank.collector.count(0, torch.ones(4, dtype=torch.int64), borrowed=False)
        rank.collector.end_step(num_tokens=4)

    for _ in range(12):
        step()
        rank.collector.load_placement(other)
        with pytest.raises(StreamError):
            rank.land()
    rank.heartbeat.beat()
    rank.heartbeat.beat()
    assert len(failures) == 1
    assert "a peer is gone" in str(failures[0])
    assert rank.windows == []
    owned = rank.collector._received._owned
    while not all(map(_is_over, owned)):  # the side's thread comes by when the system lets it
        time.sleep(0.001)
    step()
    assert len(owned) == 1
    rank.close()


def rank_content():
    return torch.arange(4).repeat(2, 1).numpy()
