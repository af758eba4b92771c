"""Counting ids alone, against a plain count."""

import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isotherm.heat import device, ops
from isotherm.heat.ids import IdCounts, warm_up
from isotherm.heat.kernels import count_int32, count_int64

EXPERTS = 11


class Counted:
    """Counts of two lanes and two layers, in a tensor with gaps, of which layer 1 is used."""

    def __init__(self):
        self.words = torch.zeros((2, 2 * 2 * EXPERTS + 5), dtype=torch.int32)
        self.heat = self.words[:, : 4 * EXPERTS].unflatten(1, (2, 2, EXPERTS))
        self.counts = IdCounts(self.heat)


def oracle(ids, first_token, num_tokens, num_decode):
    heat = np.zeros((2, EXPERTS), np.int32)
    for token, row in enumerate(ids.tolist()):
        for expert in row:
            if 0 <= expert < EXPERTS and first_token <= token < first_token + num_tokens:
                heat[int(token < first_token + num_decode), expert] += 1
    return heat


def random_ids(rng, tokens, dtype=torch.int64):
    return torch.from_numpy(rng.integers(-2, EXPERTS + 2, (tokens, 3))).to(dtype)


batches = st.tuples(
    st.integers(0, 2**31), st.sampled_from([0, 1, 2, 40, 300]), st.integers(0, 50), st.integers(0, 350)
)


@settings(max_examples=100, deadline=None)
@given(batches, st.booleans(), st.sampled_from([torch.int32, torch.int64, torch.int16]))
def test_counts_are_the_oracles(batch, as_tensors, dtype):
    seed, tokens, first_token, num_tokens = batch
    rng = np.random.default_rng(seed)
    ids = random_ids(rng, tokens, dtype)
    num_decode = int(rng.choice([0, num_tokens, rng.integers(num_tokens + 1)]))
    numbers = {"first_token": first_token, "num_tokens": num_tokens, "num_decode": num_decode}
    expected = oracle(ids, **numbers)
    counted = Counted()
    held = {name: torch.tensor([number]) if as_tensors else number for name, number in numbers.items()}
    counted.counts.count(1, ids, micro_batch=1, **held)
    assert (counted.heat[1, :, 1].numpy() == expected).all()
    assert int(counted.words.sum()) == expected.sum()

    heat = torch.zeros((2, EXPERTS), dtype=torch.int32)
    device.count(ids, list(held.values()), heat)
    assert (heat.numpy() == expected).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_nothing_compiles_while_serving(dtype):
    warm_up()
    wide = torch.randint(0, EXPERTS, (40, 6)).to(dtype)
    for ids in (wide, wide[:, ::2], wide.T.contiguous().T):
        counted = Counted()
        counted.counts.count(1, ids, num_tokens=40, num_decode=7)
        assert (counted.heat[0, :, 1].numpy() == oracle(ids, 0, 40, 7)).all()
    assert [len(kernel.signatures) for kernel in (count_int64, count_int32)] == [1, 1]


def test_two_threads_count_two_micro_batches_at_once():
    rng = np.random.default_rng(7)
    counted = Counted()
    batches = [random_ids(rng, tokens) for tokens in (3, 500)]
    start = threading.Barrier(2)

    def work(lane):
        start.wait()
        for _ in range(300):
            counted.counts.count(1, batches[lane], num_tokens=500, num_decode=1, micro_batch=lane)

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for lane, ids in enumerate(batches):
        assert (counted.heat[lane, :, 1].numpy() == 300 * oracle(ids, 0, 500, 1)).all()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_region_reads_its_numbers_anew_at_each_replay(backend):
    rng = np.random.default_rng(8)
    counted, expected = Counted(), np.zeros((2, EXPERTS), np.int32)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend=backend)
    def region(ids, state):
        counted.counts.count_captured(1, ids, state, micro_batch=1)
        return ids + 1

    state = torch.zeros(4, dtype=torch.int64)
    for numbers in [(0, 40, 10), (5, 20, 0), (0, 0, 0), (30, 50, 50)]:
        ids = random_ids(rng, 50)
        state.copy_(torch.tensor((7, *numbers)))
        region(ids, state)
        expected += oracle(ids, *numbers)
        assert (counted.heat[1, :, 1].numpy() == expected).all()
    assert int(counted.words.sum()) == expected.sum()


def test_the_operator_says_what_it_does():
    ids, state = random_ids(np.random.default_rng(9), 30), torch.tensor((0, 2, 20, 5))
    heat = torch.zeros((2, 2, 2, EXPERTS), dtype=torch.int32)
    torch.library.opcheck(ops.count, (ids, state, heat, 1, 1))


def test_ids_on_another_device_are_refused():
    """Kernels are given addresses: one of another device would end the process."""
    ids = torch.zeros((1, 1), dtype=torch.int64, device="meta")
    with pytest.raises(ValueError, match="ids on meta given, the totals lie on cpu"):
        Counted().counts.count(0, ids, num_tokens=1, num_decode=0)


@pytest.mark.parametrize("heat", [torch.zeros((1, 2, 3, 4)), torch.zeros((1, 2, 4, 3), dtype=torch.int32).mT])
def test_totals_that_a_kernel_would_misread_are_refused(heat):
    with pytest.raises(ValueError, match="heat_MKLE is"):
        IdCounts(heat)


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed: pip install 'isotherm[dev]' on Linux x86_64",
)
def test_the_triton_kernel_counts_the_same_in_its_interpreter():
    done = subprocess.run(
        [sys.executable, Path(__file__).parent / "interpreted_count.py"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "12 batches are equal\n", done.stderr
