"""The operator for compiled and captured regions: what it gives is what the direct call gives."""

import numpy as np
import pytest
import torch
from routed import Counted, random_ids, random_tables

from isotherm.router import ops

STEPS = [(3, 0, 40, 10), (4, 5, 20, 0), (9, 0, 0, 0), (10, 30, 50, 50)]
"""Step, first_token, num_tokens, num_decode."""


def make(seed=1, micro_batches=2):
    rng = np.random.default_rng(seed)
    _, _, tables = random_tables(rng, 16, 24)
    return rng, tables, Counted(tables, rank=2, micro_batches=micro_batches)


def route(counted, ids, numbers, micro_batch):
    step, first_token, num_tokens, num_decode = numbers
    return counted.route(ids, num_tokens, num_decode, step, first_token, micro_batch)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_region_reads_its_numbers_anew_at_each_replay(backend):
    rng, _, compiled = make()
    _, _, direct = make()
    graphs = []

    def step(ids, state):
        first = compiled.router.route_captured(1, ids, state, micro_batch=0)
        return first, compiled.router.route_captured(1, ids + 0, state, micro_batch=1)

    def counting_backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    region = torch.compile(step, fullgraph=True, backend=counting_backend)
    state = torch.zeros(4, dtype=torch.int64)
    for numbers in STEPS:
        ids = random_ids(rng, 50, 16, 4)
        state.copy_(torch.tensor(numbers))
        for lane, chosen in enumerate(region(ids, state)):
            assert torch.equal(chosen, route(direct, ids, numbers, lane))
        assert torch.equal(compiled.words, direct.words)
    assert len(graphs) == 1


def test_tables_loaded_between_replays_are_used():
    rng, _, compiled = make()
    _, _, others = random_tables(rng, 16, 24)
    torch._dynamo.reset()
    region = torch.compile(
        lambda ids, state: compiled.router.route_captured(1, ids, state), fullgraph=True, backend="aot_eager"
    )
    ids, state = random_ids(rng, 50, 16, 4), torch.tensor(STEPS[0])
    before = region(ids, state)
    compiled.router.load(compiled.router.try_stage(others))
    after = region(ids, state)
    assert not torch.equal(before, after)
    assert torch.equal(after, route(Counted(others, rank=2), ids, STEPS[0], 0))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_other_dtypes_and_strides_pass_the_operator(dtype):
    rng, _, captured = make()
    _, _, direct = make()
    ids = random_ids(rng, 8, 16, 6).to(dtype)[:, ::2]
    chosen = captured.router.route_captured(1, ids, torch.tensor((1, 0, 8, 2)))
    assert chosen.dtype == dtype
    assert torch.equal(chosen, route(direct, ids, (1, 0, 8, 2), 0))
    assert torch.equal(captured.words, direct.words)


@pytest.mark.parametrize("tokens", [1, 50])
def test_the_operator_says_what_it_does(tokens):
    """Fake results, declared mutations and functionalization, checked by torch itself."""
    rng, _, counted = make()
    router = counted.router
    ids, state = random_ids(rng, tokens, 16, 4), torch.tensor((3, 0, tokens, 1))
    heat, received = (torch.zeros(t.shape, dtype=torch.int32) for t in (counted.heat, counted.received))
    torch.library.opcheck(ops.map_and_count, (ids, state, router._block, heat, received, 1, 1, 2, 0))


def test_the_device_path_of_a_router_gives_the_same_slots_and_counts():
    """What a router does on an accelerator, on the CPU: everything but the kernel's own launch."""
    rng, _, host = make()
    _, _, device = make()
    device.router._kernel = None
    for numbers in STEPS:
        ids = random_ids(rng, 50, 16, 4)
        held = [torch.tensor([number]) for number in numbers[1:]]
        for lane, given in enumerate((numbers, (numbers[0], *held))):
            assert torch.equal(route(host, ids, numbers, lane), route(device, ids, given, lane))
        assert torch.equal(host.words, device.words)
