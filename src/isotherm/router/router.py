"""Maps the experts that tokens chose to slots, and counts both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch

from isotherm.numbers import Number, Numbers, on_host
from isotherm.router import ops
from isotherm.router.host import HostCalls, host_kernel
from isotherm.router.layout import TablesLayout
from isotherm.router.rounding import rounding_base
from isotherm.router.staging import BUFFERS, Staged, Staging
from isotherm.router.tables import RoutingTables
from isotherm.status import Memory
from isotherm.streams import Backend
from isotherm.topology import MoEShape, Topology

Dispatch = Literal["sender", "replicated"]
"""Who decides a token's slot: the rank that owns it; or every rank, which maps all and keeps its part."""

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

    With ``dispatch="replicated"`` every rank maps the tokens of all ranks in the same order and counts its
    own (``first_token``, ``num_tokens``). No choice hangs on the rank then, so with equal tables all ranks
    send each pair to the same slot; that they load tables in the same step is the caller's to see to.

    Raises:
        ValueError: totals that do not fit the tables; tables that level each batch, on an accelerator; an
            unknown kind of dispatch.
    """

    def __init__(
        self,
        tables: RoutingTables,
        *,
        rank: int,
        backend: Backend,
        heat_MKLE: torch.Tensor,
        received_MLP: torch.Tensor,
        dispatch: Dispatch = "sender",
    ) -> None:
        if dispatch not in get_args(Dispatch):
            raise ValueError(f"dispatch={dispatch!r} is unknown: choose sender or replicated")
        self._rank = rank if dispatch == "sender" else 0  # as part of the rounding: the same everywhere
        self._heat_MKLE, self._received_MLP = heat_MKLE, received_MLP
        self._slots = tables.slots.shape[1]
        on_host = backend.device.type == "cpu"
        layout = TablesLayout.of(tables, on_host)
        _check_totals(layout, heat_MKLE, received_MLP)
        if layout.ranks and not on_host:
            raise ValueError(
                f"tables that level each batch given for {backend.device}, and only the CPU's kernel does "
                "that: choose split='shares' or 'near', or build them without others_LG"
            )
        self._ranks = layout.ranks
        block = torch.empty(layout.nbytes, dtype=torch.uint8)
        layout.fill(block, tables)
        self._block = block.to(backend.device)
        self._staging = Staging(layout, backend)
        views = layout.views(self._block)
        # Views and addresses are made once: making them in each call would cost more than the mapping.
        self._rows = [
            [(views.layer(layer), heat_KLE[:, layer], received_LP[layer]) for layer in range(layout.layers)]
            for heat_KLE, received_LP in zip(heat_MKLE, received_MLP, strict=True)
        ]
        if on_host:
            self._calls = HostCalls(views, self._rank, heat_MKLE, received_MLP)
            self._addresses = self._calls.addresses
            self._kernel: Callable[..., bool] | None = host_kernel()
        else:
            self._kernel = None
            self._warm_device()

    def _warm_device(self) -> None:
        """Compiles what Triton compiles at a first call, now: no token is mapped."""
        state = torch.zeros(4, dtype=torch.int64, device=self._block.device)
        for dtype in WARM_DTYPES:
            ids_TK = torch.empty((0, 1), dtype=dtype, device=self._block.device)
            self.route(0, ids_TK, step=0, num_tokens=0, num_decode=0)
            self.route_captured(0, ids_TK, state)

    @staticmethod
    def memory(
        shape: MoEShape,
        topology: Topology,
        micro_batches: int = 1,
        *,
        device: torch.device | str = "cpu",
        levels_batches: bool = False,
    ) -> Memory:
        """What a router makes on ``device``: its tables, the pinned buffers that new ones come through, and
        on a CPU the kernel's scratch. ``levels_batches``: with tables that level each batch."""
        on_host = torch.device(device).type == "cpu"
        ranks = topology.ranks if levels_batches else 0
        layout = TablesLayout(shape.layers, shape.experts, topology.slots, on_host, ranks)
        return Memory(
            device_bytes=layout.nbytes,
            pinned_bytes=BUFFERS * layout.nbytes,
            host_bytes=HostCalls.nbytes(layout, micro_batches) if on_host else 0,
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
        num_tokens: Number,
        num_decode: Number,
        first_token: Number = 0,
        micro_batch: int = 0,
    ) -> torch.Tensor:
        """The slot of each (token, expert) pair, same shape and dtype as ``ids_TK``; -1 for an id that
        names no expert (negative, or too large).

        Each replica's count is within 1 of its share of the expert's tokens in this batch, or, with tables
        that level each batch, what levels one with more pairs than half the experts. All rows are mapped.
        Rows ``first_token <= row < first_token + num_tokens`` are this rank's real tokens, and counted; the
        first ``num_decode`` of these are decode tokens.

        Args:
            layer: index of the MoE layer.
            ids_TK: any integer dtype, any strides. An unsigned dtype shows -1 as its largest value.
            step: the step, part of the rounding.
            num_tokens, num_decode, first_token: integers, or integer tensors of one element on the ids'
                device, which the host then does not read.
            micro_batch: the lane that counts, and part of the rounding.

        Raises:
            ValueError: ids on another device than the tables, of a dtype too narrow for the slots, or not
                of two axes.
        """
        if self._kernel is None:
            known_TK = self._known(ids_TK)
            numbers = (step, first_token, num_tokens, num_decode)
            return self._route_on_device(layer, known_TK, numbers, micro_batch).to(ids_TK.dtype)
        if not type(num_tokens) is type(num_decode) is type(first_token) is int:
            num_tokens, num_decode = on_host(num_tokens), on_host(num_decode)
            first_token = on_host(first_token)
        slots_TK = torch.empty_like(ids_TK)
        address = self._addresses[micro_batch][layer]
        if self._kernel(address, ids_TK, slots_TK, step, first_token, num_tokens, num_decode):
            return slots_TK
        known_TK = self._known(ids_TK)
        slots_TK = torch.empty_like(known_TK)
        if self._kernel(address, known_TK, slots_TK, step, first_token, num_tokens, num_decode):
            return slots_TK.to(ids_TK.dtype)
        raise ValueError(
            f"ids of shape {tuple(ids_TK.shape)} given, as {type(ids_TK).__name__}: give them as a tensor "
            "[tokens, top_k] that has memory"
        )

    def route_captured(
        self, layer: int, ids_TK: torch.Tensor, state: torch.Tensor, *, micro_batch: int = 0
    ) -> torch.Tensor:
        """As `route`, for regions that `torch.compile` compiles or a device captures as a graph: one
        operator, ``isotherm::map_and_count``, that reads what changes from ``state`` at each replay.
        Elsewhere `route` costs less.

        Args:
            state: int64 [4] on the ids' device: step, first_token, num_tokens, num_decode. The engine
                writes to it, in the order of its stream, and never replaces it.
        """
        slots_TK: torch.Tensor = ops.map_and_count(
            self._known(ids_TK),
            state,
            self._block,
            self._heat_MKLE,
            self._received_MLP,
            layer,
            micro_batch,
            self._rank,
            self._ranks,
        )
        return slots_TK.to(ids_TK.dtype)

    def _known(self, ids_TK: torch.Tensor) -> torch.Tensor:
        """Ids as the kernels take them: contiguous, int64 or int32. One for each dtype would be compiled in
        the middle of serving."""
        if ids_TK.device.type != self._block.device.type:
            raise ValueError(
                f"ids on {ids_TK.device} given, the tables lie on {self._block.device}: put both on one"
            )
        if ids_TK.dtype in WARM_DTYPES:
            return ids_TK.contiguous()
        if torch.iinfo(ids_TK.dtype).max < self._slots - 1:
            raise ValueError(
                f"ids of {ids_TK.dtype} cannot name {self._slots} slots: give them as "
                "torch.int32 or torch.int64"
            )
        return ids_TK.long().contiguous()

    def _route_on_device(
        self, layer: int, ids_TK: torch.Tensor, numbers: Numbers, micro_batch: int
    ) -> torch.Tensor:
        base = rounding_base(layer, 0, self._rank, micro_batch)
        return ops.map_on_device(ids_TK, numbers, base, *self._rows[micro_batch][layer])


def _check_totals(layout: TablesLayout, heat_MKLE: torch.Tensor, received_MLP: torch.Tensor) -> None:
    micro_batches = len(heat_MKLE)
    for name, tensor, shape in (
        ("heat_MKLE", heat_MKLE, (micro_batches, 2, layout.layers, layout.experts)),
        ("received_MLP", received_MLP, (micro_batches, layout.layers, layout.slots)),
    ):
        if tensor.stride(-1) != 1 and shape[-1] > 1:
            raise ValueError(f"{name} has strides {tensor.stride()}: its last axis must have stride 1")
        if tensor.shape != shape or tensor.dtype != torch.int32:
            raise ValueError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}, these tables need int32 {shape}: make the "
                "totals for the same model, with as many rows for both"
            )


def warm_up() -> None:
    """Compiles the CPU's kernel, or loads it from numba's cache: once per process, before serving."""
    host_kernel()
