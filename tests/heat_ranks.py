"""Ranks of a heat collector in threads of one process: the real code, rounds made by hand."""

from __future__ import annotations

import threading

import numpy as np
import torch

from isotherm.control import Heartbeat
from isotherm.heat import HeatCollector
from isotherm.topology import MoEShape, Topology
from memory_link import memory_links

SHAPE = MoEShape(2, 4, 2, layer_ids=(3, 7))


class MemoryDeviceGroup:
    """Collectives of ``size`` threads over CPU tensors, as `isotherm.heat.aside.DeviceGroup`."""

    def __init__(self, room, rank, size):
        self._room, self._rank, self.size = room, rank, size

    def _swap(self, tensor):
        box, barrier = self._room
        box[self._rank] = tensor.clone()
        barrier.wait()
        tensors = list(box)
        barrier.wait()
        return tensors

    def all_reduce(self, tensor):
        tensor.copy_(torch.stack(self._swap(tensor)).sum(0, dtype=tensor.dtype))

    def all_gather(self, gathered, tensor):
        gathered.copy_(torch.cat(self._swap(tensor)))


def memory_device_groups(size):
    room = [None] * size, threading.Barrier(size, timeout=30)
    return [MemoryDeviceGroup(room, rank, size) for rank in range(size)]


class Rank:
    """One rank's collector, stepped and beaten by hand. Every step is a snapshot."""

    def __init__(self, link, topology, *, window_steps=2, **arguments):
        self.windows = []
        self.collector = HeatCollector(
            SHAPE,
            topology,
            None,
            rank=link.rank,
            window_steps=window_steps,
            slices=window_steps,
            **arguments,
        )
        self.collector.on_window(self.windows.append)
        self.heartbeat = Heartbeat(link, [self.collector.gather], interval_seconds=1)

    def add(self, heat_KLE, slots_LP):
        """Adds arbitrary counts, as a router would, and ends a step of one prefill token."""
        totals = self.collector.totals
        totals.heat_MKLE[0] += torch.from_numpy(heat_KLE.astype(np.int32))
        totals.slots_MLP[0] += torch.from_numpy(slots_LP.astype(np.int32))

    def end_step(self, num_tokens=1):
        """Ends a step; its snapshot has landed when this returns."""
        self.collector.end_step(num_tokens=num_tokens)
        self.land()

    def land(self):
        self.collector._side.synchronize()

    def close(self):
        self.collector.close()


def make_ranks(count, *, on_device=False, slots_per_rank=4, nodes=1, **arguments):
    topology = Topology(ranks=count, slots_per_rank=slots_per_rank, nodes=nodes)
    groups = memory_device_groups(count) if on_device else [None] * count
    return [
        Rank(link, topology, device_group=group, **arguments)
        for link, group in zip(memory_links(count), groups, strict=True)
    ]


def in_threads(functions):
    """Runs the functions at once, one a thread; raises what the first of them raised."""
    errors = []

    def run(function):
        try:
            function()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def beat_all(ranks):
    in_threads([rank.heartbeat.beat for rank in ranks])


def some_counts(rng, ranks, high=1000, slots_per_rank=4):
    layers, experts = SHAPE.layers, SHAPE.experts
    heat_KLE = rng.integers(0, high, (2, layers, experts))
    return heat_KLE, rng.integers(0, high, (layers, slots_per_rank * ranks))
