"""Counting the experts that tokens chose, where no mapping goes with it."""

from __future__ import annotations

from typing import Any

import torch

from isotherm.heat.kernels import count_ids

WARM_DTYPES = (torch.int64, torch.int32)
"""Ids of these are counted as they are, others by way of int64: nothing compiles while serving."""


class IdCounts:
    """Counts ids into a strided view of the caller's totals, ``heat_MKLE``, int32 [micro_batches, kinds,
    layers, experts], in place at fixed addresses. A micro-batch counts into its own lane, so two streams, or
    two threads, never add to one address."""

    def __init__(self, heat_MKLE: torch.Tensor) -> None:
        self._rows: list[list[torch.Tensor]] = [
            [heat_KLE[:, layer] for layer in range(heat_KLE.shape[1])] for heat_KLE in heat_MKLE
        ]
        self._host_rows: list[list[Any]] = []
        if heat_MKLE.device.type == "cpu":
            self._host_rows = [[heat_KE.numpy() for heat_KE in rows] for rows in self._rows]

    def count(
        self,
        layer: int,
        ids_TK: torch.Tensor,
        *,
        num_tokens: int | torch.Tensor,
        num_decode: int | torch.Tensor,
        first_token: int | torch.Tensor = 0,
        micro_batch: int = 0,
    ) -> None:
        """Counts the rows ``first_token <= row < first_token + num_tokens``, the first ``num_decode`` of them
        as decode tokens, on the engine's stream. Never waits.

        Args:
            layer: index of the MoE layer.
            ids_TK: logical experts [tokens, top_k], any integer dtype, any strides. An id that names no
                expert (negative, or too large) counts nothing.
            num_tokens, num_decode, first_token: integers, or integer tensors of one element on the ids'
                device, which the host then does not read.
            micro_batch: the lane that counts.
        """
        if not self._host_rows:
            _add_ids(self._rows[micro_batch][layer], ids_TK, first_token, num_tokens, num_decode)
            return
        known_TK = ids_TK.contiguous() if ids_TK.dtype in WARM_DTYPES else ids_TK.long().contiguous()
        count_ids(
            known_TK.numpy(),
            _on_host(first_token),
            _on_host(num_tokens),
            _on_host(num_decode),
            self._host_rows[micro_batch][layer],
        )


def _on_host(scalar: int | torch.Tensor) -> int:
    """The number in a tensor that lies on the host: read in place."""
    return int(scalar.numpy().reshape(-1)[0]) if isinstance(scalar, torch.Tensor) else scalar


def _add_ids(
    heat_KE: torch.Tensor,
    ids_TK: torch.Tensor,
    first_token: int | torch.Tensor,
    num_tokens: int | torch.Tensor,
    num_decode: int | torch.Tensor,
) -> None:
    """Adds one for each real pair, without telling the host how many there are."""
    experts = heat_KE.shape[1]
    flat = ids_TK.reshape(-1).long()
    row = torch.arange(len(flat), device=flat.device) // max(ids_TK.shape[1], 1) - first_token
    real = (flat >= 0) & (flat < experts) & (row >= 0) & (row < num_tokens)
    decode = real & (row < num_decode)
    index = flat.clamp(0, experts - 1)
    heat_KE[1].scatter_add_(0, index, decode.to(heat_KE.dtype))
    heat_KE[0].scatter_add_(0, index, (real & ~decode).to(heat_KE.dtype))


def warm_up() -> None:
    """Compiles the kernel, or loads it from numba's cache: before serving."""
    counts = IdCounts(torch.zeros((1, 2, 1, 1), dtype=torch.int32))
    for dtype in WARM_DTYPES:
        counts.count(0, torch.zeros((1, 1), dtype=dtype), num_tokens=0, num_decode=0)
