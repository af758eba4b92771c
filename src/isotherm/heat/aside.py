"""Gathering on the device, beside the engine: for engines that order device collectives themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.distributed as dist

from isotherm.heat.totals import TotalsLayout
from isotherm.status import Memory
from isotherm.streams import Stream

STEP_WORDS = 1
"""Words that tell whether every rank gave the same step."""


class DeviceGroup(Protocol):
    """Collectives over memory of the device. Each is enqueued on the stream that is current, in the same
    order on every rank."""

    size: int

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Sums ``tensor`` over the ranks, in place, modulo 2^32."""

    def all_gather(self, gathered: torch.Tensor, tensor: torch.Tensor) -> None:
        """``tensor`` of every rank, one behind the other."""


class TorchDeviceGroup:
    """A torch.distributed group whose collectives the engine orders with its own.

    The engine says so by giving the group: unordered communicators on one device deadlock.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.size = dist.get_world_size(group)

    def all_reduce(self, tensor: torch.Tensor) -> None:
        dist.all_reduce(tensor, group=self._group)

    def all_gather(self, gathered: torch.Tensor, tensor: torch.Tensor) -> None:
        dist.all_gather_single(gathered, tensor, group=self._group)


class DeviceGather:
    """Sums heat over the ranks, and gathers the loads of their slots, on the side stream.

    Every rank makes the same calls at every snapshot step, in buffers made once. ``gathered`` int32 [words]
    holds heat and tokens of all ranks, the sum of the steps that they gave, and the loads: [ranks, layers,
    slots] where each rank knows its own slots (``own_slots``), else [layers, slots] summed. A rank that had
    no free buffer gives zeros and step 0, which all ranks read alike and discard: totals run on, so
    nothing is lost.
    """

    def __init__(
        self, group: DeviceGroup, layout: TotalsLayout, rows_MW: torch.Tensor, *, own_slots: bool
    ) -> None:
        self._group = group
        self._layout = layout
        self._own_slots = own_slots
        self.size = group.size
        self.words = gathered_words(layout, group.size, own_slots)
        self.gathered = rows_MW.new_zeros(self.words)
        self._mine = rows_MW.new_zeros(layout.words)
        self._reduced = self.gathered[: layout.reduced_words + STEP_WORDS]
        self._loads = self.gathered[layout.reduced_words + STEP_WORDS :]

    @staticmethod
    def landing_bytes(layout: TotalsLayout, ranks: int, *, own_slots: bool) -> int:
        """What comes to the host of a gather over ``ranks``."""
        return 4 * gathered_words(layout, ranks, own_slots)

    @staticmethod
    def memory(layout: TotalsLayout, ranks: int, *, own_slots: bool) -> Memory:
        """The buffers of a gather over ``ranks``."""
        return Memory(device_bytes=4 * (gathered_words(layout, ranks, own_slots) + layout.words))

    def submit(self, stream: Stream, step: int, tokens_K: Sequence[int], rows_MW: torch.Tensor) -> None:
        """Enqueues the gather of ``rows_MW``, a snapshot of step ``step``, on ``stream``. ``tokens_K`` are
        the tokens that the host knows of beside it."""

        def work() -> None:
            torch.sum(rows_MW, 0, dtype=self._mine.dtype, out=self._mine)
            for tokens, kind in zip(tokens_K, self._layout.tokens_of(self._mine), strict=True):
                kind.add_(_as_int32(tokens))
            self._gather(step)

        stream.submit(work, reads=[rows_MW], writes=[self._mine, self.gathered])

    def submit_nothing(self, stream: Stream) -> None:
        """Makes the calls of a snapshot that this rank had to skip."""

        def work() -> None:
            self._mine.zero_()
            self._gather(0)

        stream.submit(work, writes=[self._mine, self.gathered])

    def _gather(self, step: int) -> None:
        mine_W, layout = self._mine, self._layout
        self._reduced[: layout.reduced_words].copy_(mine_W[: layout.reduced_words])
        self._reduced[layout.reduced_words :].fill_(_as_int32(step))
        self._group.all_reduce(self._reduced)
        if not layout.slot_words:
            return
        slots_W = mine_W[layout.reduced_words :]
        if self._own_slots:
            self._group.all_gather(self._loads, slots_W)
        else:
            self._loads.copy_(slots_W)
            self._group.all_reduce(self._loads)


def _as_int32(number: int) -> int:
    """The number modulo 2^32, as totals hold it."""
    return (number + 2**31) % 2**32 - 2**31


def gathered_words(layout: TotalsLayout, ranks: int, own_slots: bool) -> int:
    """Words of what lands: heat, tokens, steps, loads."""
    loads = layout.slot_words * (ranks if own_slots else 1)
    return layout.reduced_words + STEP_WORDS + loads
