"""Counting ids in compiled and captured regions: an operator that `torch.compile` and graph capture carry as
it is. What changes from step to step is read from a tensor on the device at each replay."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from isotherm.heat import device
from isotherm.heat.kernels import count_int32, count_int64
from isotherm.jit import entry
from isotherm.numbers import Numbers
from isotherm.streams.compilers import triton_compiles_for


@torch.library.custom_op("isotherm::count", mutates_args=("heat_MKLE",))
def count(
    ids_TK: torch.Tensor, state: torch.Tensor, heat_MKLE: torch.Tensor, layer: int, micro_batch: int
) -> None:
    """Counts contiguous int64 or int32 ids in place. ``state``, int64 [4] on the device of the ids: step,
    first_token, num_tokens, num_decode."""
    heat_KE = heat_MKLE[micro_batch, :, layer]
    if not ids_TK.is_cpu:
        count_on_device(ids_TK, state[1:], heat_KE)
        return
    tokens, top_k = ids_TK.shape
    numbers = (int(number) for number in state.numpy()[1:])
    addresses = heat_KE[0].data_ptr(), heat_KE[1].data_ptr()
    kernel = host_kernels()[ids_TK.dtype]
    kernel(*addresses, heat_KE.shape[1], ids_TK.data_ptr(), tokens, top_k, *numbers)


@count.register_fake
def _(
    ids_TK: torch.Tensor, state: torch.Tensor, heat_MKLE: torch.Tensor, layer: int, micro_batch: int
) -> None:
    return None


def count_on_device(ids_TK: torch.Tensor, numbers: Numbers, heat_KE: torch.Tensor) -> None:
    """Counts contiguous ids on an accelerator: by one Triton kernel where Triton is installed, else by
    torch's operations."""
    if triton_compiles_for(ids_TK.device.type):
        from isotherm.heat import triton_kernels

        triton_kernels.count(ids_TK, numbers, heat_KE)
    else:
        device.count(ids_TK, numbers, heat_KE)


@cache
def host_kernels() -> dict[torch.dtype, Callable[..., None]]:
    """The CPU's kernels, compiled or loaded from numba's cache at the first call. Other ids than int64 and
    int32 go by way of int64: nothing compiles while serving."""
    return {torch.int64: entry(count_int64), torch.int32: entry(count_int32)}
