"""Weights read, compared and refilled while they are balanced, and a placement to start again from."""

import logging
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist

from isotherm import Balancer, Config, LinkError, MoEShape, Topology, read_placement
from isotherm.mover.slots import Unequal, find_unequal
from isotherm.streams.host import CallerStream, HostBackend
from memory_link import memory_links
from ranks import run_ranks

SHAPE = MoEShape(2, 8, 2, layer_ids=(3, 5))
TOPOLOGY = Topology.for_model(experts=8, redundant=2, ranks=2)


def value(layer, expert, version):
    return float(expert + 100 * layer + 1000 * version)


def make_weights(rank):
    experts = (rank * 5 + torch.arange(5)) % 8
    return [
        {
            "up": (experts + 100.0 * layer)[:, None].repeat(1, 3),
            "down": [torch.full((2,), value(layer, int(expert), 0)) for expert in experts],
        }
        for layer in range(2)
    ]


def serve(balancer, rank, steps):
    """Another expert is hot every 30 steps, so there is always something to move."""
    for _ in range(steps):
        step = balancer.statistics().steps
        rng = np.random.default_rng([rank, step])
        heat = np.ones(8)
        heat[step // 30 * 3 % 8] = 50
        with balancer.step(20):
            for layer in range(2):
                ids = np.argsort(rng.random((20, 8)) / heat, axis=1)[:, :2].copy()
                balancer.route(layer, torch.from_numpy(ids))
        time.sleep(0.001)


def is_right(balancer, version):
    """Whether every tensor of `logical_state` is that of its expert."""
    return all(
        bool((tensor == value(layer, expert, version)).all())
        for layer, experts in enumerate(balancer.logical_state())
        for expert, tensors in experts.items()
        for tensor in tensors.values()
    )


def live(rank, folder):
    weights = make_weights(rank)
    config = Config(mode="full", window_steps=8, min_gain=0.0, heartbeat_seconds=0.002, moves_in_flight=2)
    arrivals = []  # whether all that lies in the slot then is one expert's

    def arrived(layer, slot):
        numbers = {*weights[layer]["up"][slot].tolist(), *weights[layer]["down"][slot].tolist()}
        arrivals.append(len(numbers) == 1)

    balancer = Balancer(
        SHAPE,
        TOPOLOGY,
        group=dist.new_group(backend="gloo"),
        weights=weights,
        config=config,
        on_arrival=arrived,
    )
    checks = []
    for version in range(1, 4):
        everywhere = torch.tensor([0])  # moves that every rank has made: all leave the loop together
        while everywhere.item() < 3 * version and balancer.statistics().steps < 6000:
            serve(balancer, rank, 8)
            everywhere = torch.tensor([balancer.statistics().moves])
            dist.all_reduce(everywhere, op=dist.ReduceOp.MIN)
        moved = balancer.statistics().moves
        held = [set(experts) for experts in balancer.logical_state()]
        checks.append((is_right(balancer, version - 1), balancer.check_replicas(), held, moved))
        source = {
            (layer, expert): {
                "up": torch.full((3,), value(layer, expert, version)),
                "down": torch.full((2,), value(layer, expert, version)),
            }
            for layer in range(2)
            for expert in range(8)
        }
        balancer.reload(source)
        checks.append((is_right(balancer, version), balancer.check_replicas(), held, moved))
    placement = balancer.placement
    path = f"{folder}/placement{rank}.npz"
    balancer.save(path)
    dist.barrier()
    if rank == 1:
        weights[0]["up"][0] += 1  # under our feet
    damaged = placement.slot_to_expert[0, 5]
    is_live = bool(balancer._loop.mover.ledger.shares[0, 5] > 0)
    unequal = balancer.check_replicas()
    balancer.close()
    assert all(arrivals)
    assert len(arrivals) == balancer.statistics().moved_bytes // (
        5 * 4
    )  # each once, those of plans given up too
    return checks, placement, read_placement(path), (int(damaged), is_live, unequal)


def test_weights_are_reloaded_and_compared_while_balanced(tmp_path):
    results = run_ranks(live, 2, tmp_path, str(tmp_path))
    for checks, placement, file, _ in results:
        assert [(right, unequal) for right, unequal, _, _ in checks] == [(True, ())] * 6
        moves = [moved for *_, moved in checks]
        assert moves[-1] > moves[0] >= 3  # weights went on moving after a reload
        assert file.placement == placement
        assert (file.layer_ids, file.ranks) == ((3, 5), 2)
    for check, other in zip(results[0][0], results[1][0], strict=True):
        for ours, theirs in zip(check[2], other[2], strict=True):
            assert ours | theirs == set(range(8))
    expert, is_live, unequal = results[0][3]
    replicas = (results[0][1].slot_to_expert[0] == expert).sum()
    assert unequal == results[1][3][2]
    assert bool(unequal) == (is_live and replicas > 1)


def test_the_first_replica_is_what_others_are_compared_with():
    words = np.array([[[[0, 7], [1, 5]], [[1, 9], [0, 3]]], [[[1, 5], [-1, -1]], [[0, 4], [1, 9]]]])
    assert find_unequal(words.reshape(2, -1), 2) == (Unequal(1, 2, 0, 1),)


def test_a_rank_that_comes_alone_is_told_and_what_was_saved_starts_again(tmp_path, caplog):
    links = memory_links(1)
    weights = [{"up": torch.arange(10.0).remainder(8)[:, None] + 100 * layer} for layer in range(2)]
    topology = Topology(ranks=1, slots_per_rank=10)
    balancer = Balancer(SHAPE, topology, group=links[0], weights=weights, inline=True)
    balancer._held.meeting._is_ready = lambda kind: False
    with pytest.raises(LinkError, match="make it on every rank"):
        balancer.check_replicas(timeout_seconds=0.05)
    balancer.save(tmp_path / "placement.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["placement.npz"]
    balancer.close()
    placement = read_placement(tmp_path / "placement.npz").placement
    with caplog.at_level(logging.ERROR):
        again = Balancer(SHAPE, topology, group=memory_links(1)[0], weights=weights, placement=placement)
        assert again.placement == placement
        again.close()
    assert not caplog.records


def test_slots_are_refilled_on_the_device_before_others_may_read_them():
    """A device queues the copies, and what moves by the step word next is read on another stream."""
    told = []

    class Main(CallerStream):
        def synchronize(self):
            told.append("the engine's stream is done")

    class Queueing(HostBackend):
        queues_work = True

        def main_stream(self):
            return Main()

    class Source(dict):
        def __getitem__(self, key):
            told.append("copied")
            return {"up": torch.tensor([7.0])}

    weights = [{"up": torch.arange(10.0).remainder(8)[:, None]} for layer in range(2)]
    topology = Topology(ranks=1, slots_per_rank=10)
    balancer = Balancer(
        SHAPE, topology, group=memory_links(1)[0], weights=weights, backend=Queueing(), inline=True
    )
    told.clear()
    balancer.reload(Source())
    balancer.close()
    assert told == ["copied"] * 20 + ["the engine's stream is done"]
