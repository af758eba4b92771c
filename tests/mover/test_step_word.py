"""Layers without redundant slots, and replicated dispatch, balanced by the step word in real processes."""

from collections import deque
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist

from isotherm import Balancer, Config, MoEShape, Topology
from isotherm.mover import DeviceTransport, HostTransport, TorchDevicePeers
from memory_link import memory_links
from ranks import run_ranks

SHAPE = MoEShape(2, 8, 2)
TOKENS, DEPTH = 24, 2


def make_weights(topology, rank):
    """Per expert: a matrix with strides, packed nibbles, their scales, and a one-byte float."""
    own = np.arange(topology.slots_per_rank) + rank * topology.slots_per_rank
    experts = torch.from_numpy(own % SHAPE.experts)
    return [
        {
            "up": (experts[:, None, None] + 10.0 * layer).repeat(1, 3, 2).transpose(1, 2),
            "packed": (experts[:, None] + 16 * layer).repeat(1, 4).to(torch.uint8),
            "scale": [torch.full((2,), float(expert)).bfloat16() for expert in experts],
            "low": experts[:, None].repeat(1, 3).float().to(torch.float8_e4m3fn),
        }
        for layer in range(SHAPE.layers)
    ]


def held(weights, layer, slot):
    """The expert that every tensor of the slot says it is; -1 where they disagree."""
    named = weights[layer]
    said = [
        *(named["up"][slot] - 10.0 * layer).flatten().tolist(),
        *(named["packed"][slot].int() - 16 * layer).flatten().tolist(),
        *named["scale"][slot].float().tolist(),
        *named["low"][slot].float().tolist(),
    ]
    return int(said[0]) if len(set(said)) == 1 else -1


class Engine:
    """Makes steps whose tokens really go from rank to rank, and lends the step word to an exchange that every
    rank reads ``DEPTH`` steps later."""

    def __init__(self, rank, topology, dispatch, transport):
        self.rank, self.topology, self.dispatch = rank, topology, dispatch
        self.weights = make_weights(topology, rank)
        self.read = deque([0] * DEPTH)
        config = Config(
            mode="full",
            window_steps=8,
            min_gain=0.0,
            heartbeat_seconds=0.002,
            moves_in_flight=4,
            check_moves=True,
        )
        self.balancer = Balancer(
            SHAPE,
            topology,
            group=dist.new_group(backend="gloo"),
            weights=self.weights,
            config=config,
            dispatch=dispatch,
            step_word=self.exchange,
            transport=transport,
        )
        self.steps = 0
        self.wrong = self.missed = 0

    def exchange(self, word):
        least = torch.tensor([word])
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        self.read.append(int(least))
        return self.read.popleft()

    def ids(self, rank, layer):
        """A pair of experts of one rank is hot, another one every 60 steps."""
        heat = np.ones(8)
        heat[[2, 3] if self.steps // 60 % 2 == 0 else [5, 6]] = 40
        rng = np.random.default_rng([rank, self.steps, layer])
        return torch.from_numpy(np.argsort(rng.random((TOKENS, 8)) / heat, axis=1)[:, :2].copy())

    def make_step(self):
        with self.balancer.step(TOKENS):
            for layer in range(SHAPE.layers):
                ids = [self.ids(rank, layer) for rank in range(self.topology.ranks)]
                if self.dispatch == "replicated":
                    every = torch.cat(ids)
                    slots = self.balancer.route(layer, every, first_token=self.rank * TOKENS)
                else:
                    every = ids[self.rank]
                    slots = self.balancer.route(layer, every)
                self.check(layer, every, slots)
        self.steps += 1

    def check(self, layer, ids, slots):
        """The owner of each slot says, in this very step, which expert its weights are; and every pair of the
        step is computed exactly once."""
        own = range(self.rank * self.topology.slots_per_rank, (self.rank + 1) * self.topology.slots_per_rank)
        mine = torch.tensor([held(self.weights, layer, slot - own.start) for slot in own])
        gathered = [torch.zeros_like(mine) for _ in range(self.topology.ranks)]
        dist.all_gather(gathered, mine)
        self.wrong += int((torch.cat(gathered)[slots] != ids).sum())
        computed = torch.tensor([sum(int((slots == slot).sum()) for slot in own)])
        if self.dispatch == "sender":
            computed.fill_(slots.numel())
        dist.all_reduce(computed)
        self.missed += abs(int(computed) - self.topology.ranks * TOKENS * SHAPE.top_k)


def serve(rank, dispatch, slots_per_rank, transport):
    """Until weights have moved on every rank: all leave for the same reason."""
    topology = Topology(ranks=2, slots_per_rank=slots_per_rank)
    engine = Engine(rank, topology, dispatch, transport)
    moves, goal = torch.zeros(1, dtype=torch.int64), 2
    while int(moves) < goal and engine.steps < 6000:
        engine.make_step()
        moves = torch.tensor([engine.balancer.statistics().moves])
        dist.all_reduce(moves, op=dist.ReduceOp.MIN)
    for _ in range(3 * DEPTH):
        engine.make_step()
    statistics, unequal = engine.balancer.statistics(), engine.balancer.check_replicas()
    tables = [(each.step, each.epoch) for each in engine.balancer.tables_in_force]
    source = {
        (layer, expert): {
            "up": torch.full((2, 3), expert + 10.0 * layer),
            "packed": torch.full((4,), expert + 16 * layer, dtype=torch.uint8),
            "scale": torch.full((2,), float(expert)).bfloat16(),
            "low": torch.full((3,), float(expert)).to(torch.float8_e4m3fn),
        }
        for layer in range(SHAPE.layers)
        for expert in range(SHAPE.experts)
    }
    engine.balancer.reload(source)
    for _ in range(4):
        engine.make_step()
    engine.balancer.close()
    return engine.wrong, engine.missed, statistics, unequal, tables, engine.balancer.placement


def build(**arguments):
    """One rank that is all there is."""
    return Balancer(
        SHAPE, Topology(ranks=1, slots_per_rank=9), group=memory_links(1)[0], weights=None, **arguments
    )


def test_ways_that_do_not_go_together_are_refused():
    with pytest.raises(
        ValueError, match=r"mode='full' changes tables, .* give step_word=, or mode='observe'"
    ):
        build(dispatch="replicated", config=Config(mode="full"))
    with pytest.raises(ValueError, match="on_arrival= prepares a slot before it is used"):
        build(step_word=lambda word: word, on_arrival=print)
    balancer = build(dispatch="replicated")
    with pytest.raises(ValueError, match="mode='shares' changes tables"):
        balancer.set_mode("shares")
    balancer.close()


def test_an_engine_that_reads_what_was_never_lent_is_told():
    balancer = build(step_word=lambda word: word + 1)
    with pytest.raises(ValueError, match="step_word returned 1, and this rank has lent no more than 0"):
        balancer.begin_step(0)
    balancer.close()


def serve_both(rank):
    """Once through the host, once as devices would do it."""
    device = partial(DeviceTransport, peers=TorchDevicePeers(dist.new_group(backend="gloo"), "cpu"))
    return serve(rank, "sender", 4, HostTransport), serve(rank, "replicated", 5, device)


def test_experts_are_swapped_without_redundant_slots_and_all_ranks_take_up_tables_in_the_same_step(tmp_path):
    for ours, theirs in zip(*run_ranks(serve_both, 2, tmp_path), strict=True):
        for wrong, missed, statistics, unequal, _, placement in (ours, theirs):
            assert (wrong, missed, unequal) == (0, 0, ())
            assert statistics.moves >= 2
            assert (statistics.waits, statistics.failures.total) == (0, 0)
            assert placement == ours[5]
        assert ours[4] == theirs[4]  # the same tables from the same step on
        assert len(ours[4]) > 1
