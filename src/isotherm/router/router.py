"""Maps the experts that tokens chose to slots, and counts both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from isotherm.router import device as device_ops
from isotherm.router.kernels import map_and_count, rounding_base
from isotherm.router.tables import RoutingTables

WARM_DTYPES = (torch.int64, torch.int32)
"""Ids of these are mapped as they are, others by way of int64."""


class Router:
    """Routing tables in force on this rank, at fixed addresses on ``device``.

    Counts are added to ``heat_KLE`` (tokens per kind, layer and expert) and ``received_LP`` (per layer
    and slot), int32 tensors of the caller's, in place and at fixed addresses too.

    ``load`` and ``route`` are called on the engine's thread, in its stream's order: a batch is mapped
    by one table, wholly.
    """

    def __init__(
        self,
        tables: RoutingTables,
        *,
        rank: int,
        device: torch.device,
        heat_KLE: torch.Tensor,
        received_LP: torch.Tensor,
    ) -> None:
        self._rank = rank
        self._tables = tuple(torch.from_numpy(array.copy()).to(device) for array in tables.arrays)
        self._rows: list[Any] = [
            (*(table[layer] for table in self._tables), *heat_KLE[:, layer], received_LP[layer])
            for layer in range(len(tables.offsets))
        ]
        # Views are made once: making them in each call would cost more than the mapping. The last two are
        # the kernel's scratch.
        scratch = np.empty(heat_KLE.shape[2], np.int32), np.empty(received_LP.shape[1], np.int64)
        self._host_rows: list[Any] = (
            [(*(tensor.numpy() for tensor in row), *scratch) for row in self._rows]
            if device.type == "cpu"
            else []
        )

    def load(self, tables: RoutingTables) -> None:
        """Puts ``tables`` in force for every later ``route``, in place."""
        for target, source in zip(self._tables, tables.arrays, strict=True):
            # The source is pageable memory, so the copy has read it when this returns.
            target.copy_(torch.from_numpy(source.copy()))

    def route(
        self, layer: int, ids_TK: torch.Tensor, *, step: int, num_tokens: int, num_decode: int
    ) -> torch.Tensor:
        """The slot of each (token, expert) pair, same shape and dtype as ``ids_TK``; -1 for an id below 0.

        Each replica's count is within 1 of its share of the expert's tokens in this batch. The first
        ``num_tokens`` rows are counted, the first ``num_decode`` of them as decode.
        """
        num_tokens = min(num_tokens, len(ids_TK))
        num_decode = min(num_decode, num_tokens)
        base = rounding_base(layer, step, self._rank)
        if not self._host_rows:
            return device_ops.map_and_count(ids_TK, num_tokens, num_decode, base, *self._rows[layer])
        # Compiled for these two dtypes and this layout: any other would compile in the middle of serving.
        known_TK = ids_TK.contiguous() if ids_TK.dtype in WARM_DTYPES else ids_TK.long().contiguous()
        slots_TK = torch.empty_like(known_TK)
        map_and_count(
            known_TK.numpy(),
            slots_TK.numpy(),
            num_tokens,
            num_decode,
            base,
            *self._host_rows[layer],
        )
        return slots_TK.to(ids_TK.dtype)


def warm_up() -> None:
    """Compiles the CPU kernel, or loads it from numba's cache: once per process, before serving."""
    router = Router(
        RoutingTables.build(np.zeros((1, 1), np.int32), np.ones((1, 1)), experts=1),
        rank=0,
        device=torch.device("cpu"),
        heat_KLE=torch.zeros((2, 1, 1), dtype=torch.int32),
        received_LP=torch.zeros((1, 1), dtype=torch.int32),
    )
    for dtype in WARM_DTYPES:
        ids_TK = torch.zeros((1, 1), dtype=dtype)
        router.route(0, ids_TK, step=0, num_tokens=0, num_decode=0)
