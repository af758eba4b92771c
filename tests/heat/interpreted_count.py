"""Run with TRITON_INTERPRET=1: the Triton kernel against torch's operations."""

import numpy as np
import torch

from isotherm.heat import device, triton_kernels

for seed in range(12):
    rng = np.random.default_rng(seed)
    experts, tokens = int(rng.integers(1, 20)), int(rng.choice([0, 1, 3, 50, 400]))
    dtype = torch.int32 if seed % 2 else torch.int64
    ids = torch.from_numpy(rng.integers(-2, experts + 2, (tokens, 3))).to(dtype)
    num = int(rng.integers(tokens + 3)) if seed % 5 else tokens
    numbers = (int(rng.integers(tokens + 1)) if seed % 3 else 0, num, int(rng.integers(num + 1)))
    expected = torch.full((2, experts), 7, dtype=torch.int32)
    device.count(ids, numbers, expected)
    mixed = [numbers[0], torch.tensor([num]), torch.tensor(numbers[2])]
    for given in (numbers, torch.tensor(numbers), mixed):
        heat = torch.full((2, experts), 7, dtype=torch.int32)
        triton_kernels.count(ids, given, heat)
        assert torch.equal(heat, expected), seed
print("12 batches are equal")
