"""Maps the experts that tokens chose to slots, and counts both."""

from __future__ import annotations

import numpy as np
import torch

from isotherm.router import device as device_ops
from isotherm.router.kernels import map_and_count, rounding_base
from isotherm.router.tables import RoutingTables


class Router:
    """Routing tables in force on this rank, at fixed addresses on ``device``.

    ``load`` and ``route`` are called on the engine's thread, in its stream's order: a batch is mapped
    by one table, wholly.
    """

    def __init__(self, tables: RoutingTables, *, rank: int, device: torch.device) -> None:
        self._rank = rank
        self._offsets_LE1 = torch.from_numpy(tables.offsets.copy()).to(device)
        self._slots_LP = torch.from_numpy(tables.slots.copy()).to(device)
        self._ends_LP = torch.from_numpy(tables.ends.copy()).to(device)
        experts = tables.offsets.shape[1] - 1
        self._seen_E = np.empty(experts, np.int32)
        self._limit_P = np.empty(tables.slots.shape[1], np.int64)

    def load(self, tables: RoutingTables) -> None:
        """Puts ``tables`` in force for every later ``route``, in place."""
        for target, source in (
            (self._offsets_LE1, tables.offsets),
            (self._slots_LP, tables.slots),
            (self._ends_LP, tables.ends),
        ):
            # The source is pageable memory, so the copy has read it when this returns.
            target.copy_(torch.from_numpy(source.copy()))

    def route(
        self,
        layer: int,
        ids_TK: torch.Tensor,
        *,
        step: int,
        num_tokens: int,
        num_decode: int,
        heat_KE: torch.Tensor,
        received_P: torch.Tensor,
    ) -> torch.Tensor:
        """The slot of each (token, expert) pair, same shape and dtype as ``ids_TK``; -1 for an id below 0.

        Each replica's count is within 1 of its share of the expert's tokens in this batch. The first
        ``num_tokens`` rows are counted, the first ``num_decode`` of them as decode: per kind and expert
        into ``heat_KE``, per slot into ``received_P`` (int32, in place).
        """
        num_tokens = min(num_tokens, len(ids_TK))
        num_decode = min(num_decode, num_tokens)
        base = rounding_base(layer, step, self._rank)
        offsets_E1, slots_P = self._offsets_LE1[layer], self._slots_LP[layer]
        ends_P = self._ends_LP[layer]
        if ids_TK.device.type != "cpu":
            return device_ops.map_and_count(
                ids_TK, num_tokens, num_decode, base, offsets_E1, slots_P, ends_P, heat_KE[0],
                heat_KE[1], received_P,
            )  # fmt: skip
        slots_TK = torch.empty_like(ids_TK)
        map_and_count(
            ids_TK.numpy(), slots_TK.numpy(), num_tokens, num_decode, base, offsets_E1.numpy(),
            slots_P.numpy(), ends_P.numpy(), heat_KE[0].numpy(), heat_KE[1].numpy(),
            received_P.numpy(), self._seen_E, self._limit_P,
        )  # fmt: skip
        return slots_TK


def warm_up() -> None:
    """Compiles the CPU kernel, or loads it from numba's cache: once per process, before serving."""
    tables = RoutingTables.build(np.zeros((1, 1), np.int32), np.ones((1, 1)), experts=1)
    router = Router(tables, rank=0, device=torch.device("cpu"))
    for dtype in (torch.int64, torch.int32):
        router.route(
            0,
            torch.zeros((1, 1), dtype=dtype),
            step=0,
            num_tokens=0,
            num_decode=0,
            heat_KE=torch.zeros((2, 1), dtype=torch.int32),
            received_P=torch.zeros(1, dtype=torch.int32),
        )
