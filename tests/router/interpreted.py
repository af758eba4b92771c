"""Run with TRITON_INTERPRET=1: the Triton kernel against the oracle, over random traffic."""

import numpy as np
import torch
from routed import layer_tables, oracle, random_ids, random_tables

from isotherm.router import triton_kernels
from isotherm.router.rounding import rounding_base

NAMES = ("step", "first_token", "num_tokens", "num_decode")


def check(seed):
    rng = np.random.default_rng(seed)
    experts, tokens = int(rng.integers(1, 20)), int(rng.choice([0, 1, 3, 50, 400]))
    top_k = min(experts, int(rng.integers(1, 5)))
    slots = experts + int(rng.integers(0, 9))
    _, _, tables = random_tables(rng, experts, slots)
    ids = random_ids(rng, tokens, experts, top_k, torch.int32 if seed % 2 else torch.int64)
    first = int(rng.integers(tokens + 1)) if seed % 3 else 0
    num = int(rng.integers(tokens + 3)) if seed % 5 else tokens
    numbers = (int(rng.integers(10**10)), first, num, int(rng.integers(num + 1)))
    slots_TK, heat, received = oracle(tables, 1, ids, rank=5, micro_batch=1, **dict(zip(NAMES, numbers)))
    base = rounding_base(1, 0, 5, 1)
    in_tensors = [numbers[0], *(torch.tensor([number]) for number in numbers[1:])]
    for given in (numbers, torch.tensor(numbers), in_tensors):
        counted = torch.full((2, experts), 7, dtype=torch.int32), torch.zeros(slots, dtype=torch.int32)
        chosen = triton_kernels.map_and_count(ids, given, base, layer_tables(tables, 1), *counted)
        assert chosen.dtype == ids.dtype
        assert (chosen.numpy() == slots_TK).all(), seed
        assert (counted[0].numpy() == heat + 7).all(), seed
        assert (counted[1].numpy() == received).all(), seed


for seed in range(15):
    check(seed)
print("15 batches are equal")
