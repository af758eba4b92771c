"""Numbers that change from step to step, on the host or on the device of the ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch

Number = int | torch.Tensor
"""A number, or a tensor of one integer on the device of the ids, which the host does not read there."""

Numbers = torch.Tensor | Sequence[Number]
"""Several of them, or one tensor of several, int64 [n]."""


def on_host(number: Number) -> int:
    """The number in a tensor that lies on the host: read in place."""
    return int(number.numpy().reshape(-1)[0]) if isinstance(number, torch.Tensor) else number


def are_plain(numbers: Numbers) -> bool:
    """Whether none of them lies in a tensor."""
    return not isinstance(numbers, torch.Tensor) and all(isinstance(number, int) for number in numbers)


def packed(numbers: Numbers, device: torch.device) -> torch.Tensor:
    """The numbers in one tensor, int64 [n], by kernels alone: a copy from the host would wait for
    the stream."""
    if isinstance(numbers, torch.Tensor):
        return numbers
    parts = []
    for number in numbers:
        if not isinstance(number, torch.Tensor):
            number = torch.full((), number, dtype=torch.int64, device=device)
        parts.append(number.reshape(1).long())
    return torch.cat(parts)
