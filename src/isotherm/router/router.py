"""Maps the experts that tokens chose to slots, and counts both."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from isotherm.router import device as device_ops
from isotherm.router.kernels import map_and_count
from isotherm.router.layout import TablesLayout
from isotherm.router.rounding import rounding_base
from isotherm.router.staging import BUFFERS, Staged, Staging
from isotherm.router.tables import RoutingTables
from isotherm.status import Memory
from isotherm.streams import Backend, backend_for
from isotherm.topology import MoEShape, Topology

WARM_DTYPES = (torch.int64, torch.int32)
"""Ids of these are mapped as they are, others by way of int64."""


class Router:
    """Routing tables in force on this rank, at fixed addresses on the backend's device.

    Counts are added in place, at fixed addresses too, to strided views of the caller's totals:
    ``heat_MKLE``, int32 [micro_batches, kinds, layers, experts], and ``received_MLP``, int32
    [micro_batches, layers, slots]. Every micro-batch of a step counts into a lane of its own, so two
    streams, or two threads, never add to one address.

    ``load`` and ``route`` are called on the engine's threads, in its stream's order: a batch is mapped
    by one table, wholly. ``try_stage`` is called on one other thread. None of them waits.
    """

    def __init__(
        self,
        tables: RoutingTables,
        *,
        rank: int,
        backend: Backend,
        heat_MKLE: torch.Tensor,
        received_MLP: torch.Tensor,
    ) -> None:
        self._rank = rank
        layout = TablesLayout.of(tables)
        self._slots = layout.slots
        _check_totals(layout, heat_MKLE, received_MLP)
        block = torch.empty(layout.nbytes, dtype=torch.uint8)
        layout.fill(block, tables)
        self._block = block.to(backend.device)
        self._staging = Staging(layout, backend)
        views = layout.views(self._block)
        # Views are made once: making them in each call would cost more than the mapping.
        self._rows: list[list[Any]] = [
            [
                (*(table[layer] for table in views), heat_KLE[:, layer], received_LP[layer])
                for layer in range(layout.layers)
            ]
            for heat_KLE, received_LP in zip(heat_MKLE, received_MLP, strict=True)
        ]
        self._host_rows: list[list[Any]] = []
        if backend.device.type == "cpu":
            for rows in self._rows:
                scratch = np.empty(layout.experts, np.int32), np.empty(layout.slots, np.int64)
                self._host_rows.append([(*(tensor.numpy() for tensor in row), *scratch) for row in rows])

    @staticmethod
    def memory(
        shape: MoEShape, topology: Topology, micro_batches: int = 1, *, device: torch.device | str = "cpu"
    ) -> Memory:
        """What a router makes on ``device``: its tables, the pinned buffers that new ones come through, and
        on a CPU the kernel's scratch."""
        nbytes = TablesLayout(shape.layers, shape.experts, topology.slots).nbytes
        scratch = 4 * shape.experts + 8 * topology.slots
        return Memory(
            device_bytes=nbytes,
            pinned_bytes=BUFFERS * nbytes,
            host_bytes=micro_batches * scratch if torch.device(device).type == "cpu" else 0,
        )

    def try_stage(self, tables: RoutingTables) -> Staged | None:
        """Copies ``tables`` into a free pinned buffer, for `load`. None: the device has still to read
        both; try later. On the heartbeat's thread; never waits.

        Raises:
            ValueError: tables of another shape.
            StreamError: the engine's stream failed.
        """
        return self._staging.try_stage(tables)

    def load(self, staged: Staged) -> None:
        """Puts staged tables in force for every later ``route``, in place and in stream order. What was
        staged is loaded in that order, all of it, overtaken tables too: that frees their buffers. On the
        engine's thread, between steps; never waits."""
        self._staging.load(staged, self._block)

    def route(
        self,
        layer: int,
        ids_TK: torch.Tensor,
        *,
        step: int,
        num_tokens: int | torch.Tensor,
        num_decode: int | torch.Tensor,
        first_token: int | torch.Tensor = 0,
        micro_batch: int = 0,
    ) -> torch.Tensor:
        """The slot of each (token, expert) pair, same shape and dtype as ``ids_TK``; -1 for an id that
        names no expert (negative, or too large).

        Each replica's count is within 1 of its share of the expert's tokens in this batch. All rows are
        mapped. Rows ``first_token <= row < first_token + num_tokens`` are this rank's real tokens, and
        counted; the first ``num_decode`` of these are decode tokens.

        Args:
            layer: index of the MoE layer.
            ids_TK: any integer dtype, any strides. An unsigned dtype shows -1 as its largest value.
            step: the step, part of the rounding.
            num_tokens, num_decode, first_token: integers, or integer tensors of one element on the ids'
                device, which the host then does not read.
            micro_batch: the lane that counts, and part of the rounding.

        Raises:
            ValueError: a dtype too narrow for the slots.
        """
        base = rounding_base(layer, step, self._rank, micro_batch)
        if not self._host_rows:
            row = self._rows[micro_batch][layer]
            if ids_TK.dtype not in WARM_DTYPES:
                ids_TK = self._widened(ids_TK)
            return device_ops.map_and_count(ids_TK, first_token, num_tokens, num_decode, base, *row)
        known_TK = ids_TK.contiguous() if ids_TK.dtype in WARM_DTYPES else self._widened(ids_TK)
        slots_TK = torch.empty_like(known_TK)
        map_and_count(
            known_TK.numpy(),
            slots_TK.numpy(),
            _on_host(first_token),
            _on_host(num_tokens),
            _on_host(num_decode),
            base,
            *self._host_rows[micro_batch][layer],
        )
        return slots_TK.to(ids_TK.dtype)

    def _widened(self, ids_TK: torch.Tensor) -> torch.Tensor:
        """Ids as int64: a kernel for their own dtype would be compiled in the middle of serving."""
        if torch.iinfo(ids_TK.dtype).max < self._slots - 1:
            raise ValueError(
                f"ids of {ids_TK.dtype} cannot name {self._slots} slots: give them as "
                "torch.int32 or torch.int64"
            )
        return ids_TK.long().contiguous()


def _on_host(scalar: int | torch.Tensor) -> int:
    """The number in a tensor that lies on the host: read in place."""
    return int(scalar.numpy().reshape(-1)[0]) if isinstance(scalar, torch.Tensor) else scalar


def _check_totals(layout: TablesLayout, heat_MKLE: torch.Tensor, received_MLP: torch.Tensor) -> None:
    micro_batches = len(heat_MKLE)
    for name, tensor, shape in (
        ("heat_MKLE", heat_MKLE, (micro_batches, 2, layout.layers, layout.experts)),
        ("received_MLP", received_MLP, (micro_batches, layout.layers, layout.slots)),
    ):
        if tensor.shape != shape or tensor.dtype != torch.int32:
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, these tables need int32 {shape}: make the "
                "totals for the same model, with as many rows for both"
            )


def warm_up() -> None:
    """Compiles the CPU kernel, or loads it from numba's cache: once per process, before serving."""
    router = Router(
        RoutingTables.build(np.zeros((1, 1), np.int32), np.ones((1, 1)), experts=1),
        rank=0,
        backend=backend_for("cpu"),
        heat_MKLE=torch.zeros((1, 2, 1, 1), dtype=torch.int32),
        received_MLP=torch.zeros((1, 1, 1), dtype=torch.int32),
    )
    for dtype in WARM_DTYPES:
        ids_TK = torch.zeros((1, 1), dtype=dtype)
        router.route(0, ids_TK, step=0, num_tokens=0, num_decode=0)
