"""Counting the experts that tokens chose, where no mapping goes with it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from isotherm.heat.kernels import count_int32, count_int64
from isotherm.jit import entry


class IdCounts:
    """Counts ids into a strided view of the caller's totals, ``heat_MKLE``, int32 [micro_batches, kinds,
    layers, experts], in place at fixed addresses. A micro-batch counts into its own lane, so two streams, or
    two threads, never add to one address."""

    def __init__(self, heat_MKLE: torch.Tensor) -> None:
        self._experts = heat_MKLE.shape[3]
        self._rows: list[list[torch.Tensor]] = [list(heat_KLE.unbind(1)) for heat_KLE in heat_MKLE]
        self._kernels = _host_kernels() if heat_MKLE.device.type == "cpu" else {}
        self._addresses = [[(row[0].data_ptr(), row[1].data_ptr()) for row in rows] for rows in self._rows]

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
        if not self._kernels:
            _add_ids(self._rows[micro_batch][layer], ids_TK, first_token, num_tokens, num_decode)
            return
        kernel = self._kernels.get(ids_TK.dtype)
        if kernel is None:
            ids_TK, kernel = ids_TK.long(), self._kernels[torch.int64]
        if not ids_TK.is_contiguous():
            ids_TK = ids_TK.contiguous()
        if not type(num_tokens) is type(num_decode) is type(first_token) is int:
            num_tokens, num_decode = _on_host(num_tokens), _on_host(num_decode)
            first_token = _on_host(first_token)
        prefill_at, decode_at = self._addresses[micro_batch][layer]
        tokens, top_k = ids_TK.shape
        kernel(
            prefill_at,
            decode_at,
            self._experts,
            ids_TK.data_ptr(),
            tokens,
            top_k,
            first_token,
            num_tokens,
            num_decode,
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


@cache
def _host_kernels() -> dict[torch.dtype, Callable[..., None]]:
    """One kernel for int64 and one for int32; other ids go by way of int64."""
    return {torch.int64: entry(count_int64), torch.int32: entry(count_int32)}


def warm_up() -> None:
    """Compiles the CPU's kernels, or loads them from numba's cache: before serving."""
    _host_kernels()
