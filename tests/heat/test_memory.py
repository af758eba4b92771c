"""What `memory` says before anything is made, against what is there afterwards, to the byte."""

import pytest
import torch.distributed as dist

from buffers import held_buffers
from heat_ranks import SHAPE, make_ranks
from isotherm import Balancer, HeatCollector, MoEShape, Topology
from isotherm.streams.host import HostBackend
from memory_link import memory_links
from ranks import run_ranks

DEEPSEEK_V3 = MoEShape(58, 256, 8, layer_ids=tuple(range(3, 61)))
EP32 = Topology.for_model(experts=256, redundant=32, ranks=32, nodes=4)


class QueueingBackend(HostBackend):
    queues_work = True


@pytest.mark.parametrize("source", ["ids", "received", "mapped"])
@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_collector_holds_what_it_said(source, on_device, micro_batches):
    ranks = make_ranks(2, source=source, on_device=on_device, micro_batches=micro_batches)
    topology = Topology(ranks=2, slots_per_rank=4)
    told = HeatCollector.memory(
        SHAPE, topology, source=source, micro_batches=micro_batches, device_group=on_device
    )
    tensors, arrays = held_buffers(
        [ranks[0].collector, ranks[0].heartbeat], leave_out=[ranks[0].heartbeat._link]
    )
    assert tensors == told.device_bytes + told.pinned_bytes
    assert arrays == told.host_bytes
    for rank in ranks:
        rank.close()


def test_a_side_row_is_told_where_the_device_queues_work():
    (rank,) = make_ranks(1, source="received", backend=QueueingBackend())
    told = HeatCollector.memory(SHAPE, Topology(ranks=1, slots_per_rank=4), source="received", device="meta")
    tensors, _ = held_buffers(rank.collector)
    assert tensors == told.device_bytes + told.pinned_bytes
    rank.close()


def hold(rank):
    group = dist.new_group(backend="gloo")
    topology = Topology(ranks=2, slots_per_rank=6)
    balancer = Balancer(SHAPE, topology, group=group, weights=None, micro_batches=2)
    rooms = [balancer._collector, balancer._router, balancer._heartbeat]
    loop = balancer._loop
    ledger = loop.mover.ledger  # a noun: what slots hold, not a buffer
    found = held_buffers(rooms, leave_out=[balancer, loop, loop.mover, loop.announcer, ledger])
    balancer.close()
    return found, Balancer.memory(SHAPE, topology, micro_batches=2)


def test_a_balancer_holds_what_it_said(tmp_path):
    for (tensors, arrays), told in run_ranks(hold, 2, tmp_path):
        assert tensors == told.device_bytes + told.pinned_bytes
        assert arrays == told.host_bytes


def test_deepseek_v3_at_ep32_takes_less_than_8_mb_of_the_device():
    for source in ("ids", "received", "mapped"):
        told = HeatCollector.memory(DEEPSEEK_V3, EP32, source=source, device="meta", device_group=True)
        assert 0 < told.device_bytes < 8e6
    told = Balancer.memory(DEEPSEEK_V3, EP32, device="meta")
    assert 0 < told.device_bytes < 8e6


def test_links_of_the_test_are_no_part_of_it():
    assert held_buffers(memory_links(1)[0]) == (0, 0)
