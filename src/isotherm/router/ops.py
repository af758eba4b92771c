"""Mapping and counting for compiled and captured regions: an operator that `torch.compile` and graph capture
carry as it is.

What changes from step to step is read from a tensor on the device at each replay, ``state``, int64 [4]: step,
first_token, num_tokens, num_decode. Tables and totals keep their addresses, so that a replay uses the tables
that were loaded last and counts where snapshots look.
"""

from __future__ import annotations

import torch

from isotherm.numbers import Numbers
from isotherm.router import device
from isotherm.router.host import map_once
from isotherm.router.layout import LayerTables, TablesLayout
from isotherm.router.rounding import rounding_base
from isotherm.streams.compilers import triton_compiles_for


@torch.library.custom_op("isotherm::map_and_count", mutates_args=("heat_MKLE", "received_MLP"))
def map_and_count(
    ids_TK: torch.Tensor,
    state: torch.Tensor,
    block: torch.Tensor,
    heat_MKLE: torch.Tensor,
    received_MLP: torch.Tensor,
    layer: int,
    micro_batch: int,
    rank: int,
    ranks: int,
) -> torch.Tensor:
    """The slots of contiguous int64 or int32 ids; counts are added in place. ``block`` holds the tables
    (`TablesLayout`), whose shape is that of the totals, and ``ranks``."""
    _, _, layers, experts = heat_MKLE.shape
    layout = TablesLayout(layers, experts, received_MLP.shape[2], ids_TK.device.type == "cpu", ranks)
    tables = layout.views(block).layer(layer)
    base = rounding_base(layer, 0, rank, micro_batch)
    counts = heat_MKLE[micro_batch, :, layer], received_MLP[micro_batch, layer]
    if layout.on_host:
        return map_once(ids_TK, state, base, tables, *counts)
    return map_on_device(ids_TK, state, base, tables, *counts)


@map_and_count.register_fake
def _(
    ids_TK: torch.Tensor,
    state: torch.Tensor,
    block: torch.Tensor,
    heat_MKLE: torch.Tensor,
    received_MLP: torch.Tensor,
    layer: int,
    micro_batch: int,
    rank: int,
    ranks: int,
) -> torch.Tensor:
    return torch.empty_like(ids_TK)


def map_on_device(
    ids_TK: torch.Tensor,
    numbers: Numbers,
    base: int,
    tables: LayerTables,
    heat_KE: torch.Tensor,
    received_P: torch.Tensor,
) -> torch.Tensor:
    """Slots of contiguous ids on an accelerator: by one Triton kernel where Triton is installed, else by
    torch's operations."""
    if triton_compiles_for(ids_TK.device.type):
        from isotherm.router import triton_kernels

        return triton_kernels.map_and_count(ids_TK, numbers, base, tables, heat_KE, received_P)
    return device.map_and_count(ids_TK, numbers, base, tables, heat_KE, received_P)
