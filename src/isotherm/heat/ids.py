"""Counting the experts that tokens chose, where no mapping goes with it."""

from __future__ import annotations

import torch

from isotherm.heat import ops
from isotherm.numbers import Number, on_host


class IdCounts:
    """Counts ids into a strided view of the caller's totals, ``heat_MKLE``, int32 [micro_batches, kinds,
    layers, experts], in place at fixed addresses. A micro-batch counts into its own lane, so two streams, or
    two threads, never add to one address.

    Raises:
        ValueError: totals that are not int32, or whose last axis has gaps.
    """

    def __init__(self, heat_MKLE: torch.Tensor) -> None:
        if heat_MKLE.dtype != torch.int32 or (heat_MKLE.stride(3) != 1 and heat_MKLE.shape[3] > 1):
            raise ValueError(
                f"heat_MKLE is {heat_MKLE.dtype} with strides {heat_MKLE.stride()}: give int32 with stride 1 "
                "in the last axis"
            )
        self._heat_MKLE = heat_MKLE
        self._experts = heat_MKLE.shape[3]
        self._rows: list[list[torch.Tensor]] = [list(heat_KLE.unbind(1)) for heat_KLE in heat_MKLE]
        self._addresses = [[(row[0].data_ptr(), row[1].data_ptr()) for row in rows] for rows in self._rows]
        self._kernels = ops.host_kernels() if heat_MKLE.is_cpu else {}
        if not heat_MKLE.is_cpu:
            self._warm_device()

    def count(
        self,
        layer: int,
        ids_TK: torch.Tensor,
        *,
        num_tokens: Number,
        num_decode: Number,
        first_token: Number = 0,
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

        Raises:
            ValueError: ids on another device than the totals.
        """
        kernel = self._kernels.get(ids_TK.dtype)
        if kernel is None or not (ids_TK.is_cpu and ids_TK.is_contiguous()):
            ids_TK = self._known(ids_TK)
            if not self._kernels:
                numbers = (first_token, num_tokens, num_decode)
                ops.count_on_device(ids_TK, numbers, self._rows[micro_batch][layer])
                return
            kernel = self._kernels[ids_TK.dtype]
        if not type(num_tokens) is type(num_decode) is type(first_token) is int:
            num_tokens, num_decode = on_host(num_tokens), on_host(num_decode)
            first_token = on_host(first_token)
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

    def count_captured(
        self, layer: int, ids_TK: torch.Tensor, state: torch.Tensor, *, micro_batch: int = 0
    ) -> None:
        """As `count`, for regions that `torch.compile` compiles or a device captures as a graph: one
        operator, ``isotherm::count``. ``state``, int64 [4] on the ids' device, is read at each replay: step
        (not used here), first_token, num_tokens, num_decode."""
        ops.count(self._known(ids_TK), state, self._heat_MKLE, layer, micro_batch)

    def _known(self, ids_TK: torch.Tensor) -> torch.Tensor:
        """Ids as the kernels take them: contiguous, int64 or int32."""
        if ids_TK.device.type != self._heat_MKLE.device.type:
            raise ValueError(
                f"ids on {ids_TK.device} given, the totals lie on {self._heat_MKLE.device}: put both on "
                "one device"
            )
        if ids_TK.dtype not in (torch.int64, torch.int32):
            ids_TK = ids_TK.long()
        return ids_TK.contiguous()

    def _warm_device(self) -> None:
        """Compiles what Triton compiles at a first call, now: no token is counted."""
        device = self._heat_MKLE.device
        for dtype in (torch.int64, torch.int32):
            ids_TK = torch.empty((0, 1), dtype=dtype, device=device)
            self.count(0, ids_TK, num_tokens=0, num_decode=0)
            self.count_captured(0, ids_TK, torch.zeros(4, dtype=torch.int64, device=device))


def warm_up() -> None:
    """Compiles the CPU's kernels, or loads them from numba's cache: before serving."""
    ops.host_kernels()
