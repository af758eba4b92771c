"""What ranks send each other of a snapshot, by way of the host or already gathered by the device."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from isotherm.arrays import Int32Array, Int64Array
from isotherm.control import Link
from isotherm.heat.aside import STEP_WORDS, gathered_words
from isotherm.heat.on_request import OnRequest
from isotherm.heat.totals import TotalsLayout
from isotherm.status import Memory
from isotherm.topology import Topology
from isotherm.window import KINDS

_INT32_MAX = 2**31 - 1


class Exchange(Protocol):
    """Differences between snapshots, and their sums over the ranks. Heartbeat thread only."""

    def largest_since_base(self, words: Int32Array, step: int) -> int | None:
        """The largest count of this rank in the snapshot ``words`` of ``step`` since the last one taken;
        None where no rank can use the snapshot."""

    def take(self, words: Int32Array) -> None:
        """Reads the snapshot that is gathered now; `heat` speaks of what came since the last."""

    def heat(self, tokens_K: Int64Array, largest: int, link: Link) -> tuple[Int64Array, Int64Array]:
        """Heat [kinds, layers, experts] and tokens [kinds] of all ranks. ``tokens_K`` are those that this
        rank's host knows of beside the snapshot; ``largest`` bounds every sum."""

    def loads(self, largest: int, link: Link) -> Int64Array | None:
        """Loads [layers, ranks, slots] of all ranks since the last call; None where nobody knows."""

    def on_request(self, steps: int, link: Link) -> tuple[Int64Array | None, Int64Array | None]:
        """Active steps [layers, experts] and heat by node [nodes, layers, experts] of all ranks since the
        last call, ``steps`` ago; None for what was not asked for."""


class HostExchange:
    """Sums and gathers over the CPU group of the heartbeat, in buffers made once.

    A rank hands over four bytes for each count of the heat (eight where a sum might not fit), and once a
    window the loads of its own slots (``own_slots``), or of all slots that it mapped tokens to, and what
    was asked for besides (``asked``).
    """

    def __init__(
        self, layout: TotalsLayout, topology: Topology, asked: OnRequest, *, own_slots: bool
    ) -> None:
        self._layout = layout
        self._topology = topology
        self._asked = asked
        self._own_slots = own_slots
        self._now_W = np.zeros(layout.words, np.int32)
        self._base_W = np.zeros(layout.words, np.int32)
        self._difference_W = np.zeros(layout.words, np.int32)
        self._loads_W = np.zeros(layout.slot_words, np.int64)
        self._narrow_W = np.zeros(layout.reduced_words, np.int32)
        self._wide_W = np.zeros(layout.reduced_words, np.int64)

    @staticmethod
    def memory(layout: TotalsLayout) -> Memory:
        """The buffers of one rank."""
        return Memory(host_bytes=12 * layout.words + 8 * layout.slot_words + 12 * layout.reduced_words)

    def largest_since_base(self, words: Int32Array, step: int) -> int:
        self._subtract(words)
        counts_W = self._difference_W.view(np.uint32)
        loads_W = self._slot_words(counts_W) + self._loads_W
        return max(int(counts_W.max(initial=0)), int(loads_W.max(initial=0)))

    def take(self, words: Int32Array) -> None:
        self._subtract(words)
        self._base_W[:] = self._now_W
        counts_W = self._difference_W.view(np.uint32)
        self._loads_W += self._slot_words(counts_W)
        self._asked.add(counts_W)

    def _slot_words(self, counts_W: np.ndarray) -> np.ndarray:
        return counts_W[self._layout.reduced_words : self._layout.counted_words]

    def heat(self, tokens_K: Int64Array, largest: int, link: Link) -> tuple[Int64Array, Int64Array]:
        layout = self._layout
        # No sum exceeds the sum of the largest, and of the tokens; four bytes do unless those overflow.
        wire_W: Int32Array | Int64Array = self._narrow_W if largest <= _INT32_MAX else self._wide_W
        counts_W = self._difference_W.view(np.uint32)[: layout.reduced_words]
        wire_W[:] = counts_W.view(np.int32) if wire_W is self._narrow_W else counts_W
        wire_W[-len(KINDS) :] += tokens_K.astype(wire_W.dtype)
        link.all_reduce(wire_W)
        summed_W = wire_W.astype(np.int64)
        return layout.heat_of(summed_W), layout.tokens_of(summed_W)

    def loads(self, largest: int, link: Link) -> Int64Array | None:
        layers, ranks = self._layout.shape.layers, self._topology.ranks
        if not self._layout.slot_words:
            return None
        loads_W, self._loads_W = self._loads_W, np.zeros_like(self._loads_W)
        fits = largest <= _INT32_MAX
        wire_W: Int32Array | Int64Array = loads_W.astype(np.int32) if fits else loads_W
        if self._own_slots:
            gathered_GW = link.all_gather(wire_W).astype(np.int64)
            return gathered_GW.reshape(ranks, layers, -1).transpose(1, 0, 2)
        link.all_reduce(wire_W)
        return wire_W.astype(np.int64).reshape(layers, ranks, -1)

    def on_request(self, steps: int, link: Link) -> tuple[Int64Array | None, Int64Array | None]:
        return self._asked.active_steps(steps, link), self._asked.source_heat(link)

    def _subtract(self, words: Int32Array) -> None:
        """The wrap of int32 makes sums and differences right modulo 2^32."""
        words.sum(axis=0, dtype=np.int32, out=self._now_W)
        np.subtract(self._now_W, self._base_W, out=self._difference_W)


class DeviceExchange:
    """Takes apart what `DeviceGather` has gathered already: no call on the link."""

    def __init__(self, layout: TotalsLayout, topology: Topology, *, own_slots: bool) -> None:
        self._layout = layout
        self._topology = topology
        self._own_slots = own_slots
        words = gathered_words(layout, topology.ranks, own_slots)
        self._base_W = np.zeros(words, np.int32)
        self._difference_W = np.zeros(words, np.int32)
        self._loads_W = np.zeros(words - layout.reduced_words - STEP_WORDS, np.int64)

    @staticmethod
    def memory(layout: TotalsLayout, ranks: int, *, own_slots: bool) -> Memory:
        """The buffers of one rank."""
        words = gathered_words(layout, ranks, own_slots)
        return Memory(host_bytes=8 * words + 8 * (words - layout.reduced_words - STEP_WORDS))

    def largest_since_base(self, words: Int32Array, step: int) -> int | None:
        given = self._topology.ranks * step
        is_whole = int(words[self._layout.reduced_words]) == (given + 2**31) % 2**32 - 2**31
        return 0 if is_whole else None

    def take(self, words: Int32Array) -> None:
        np.subtract(words, self._base_W, out=self._difference_W)
        self._base_W[:] = words
        self._loads_W += self._difference_W.view(np.uint32)[self._layout.reduced_words + STEP_WORDS :]

    def heat(self, tokens_K: Int64Array, largest: int, link: Link) -> tuple[Int64Array, Int64Array]:
        summed_W = self._difference_W.view(np.uint32)[: self._layout.reduced_words].astype(np.int64)
        return self._layout.heat_of(summed_W), self._layout.tokens_of(summed_W)

    def loads(self, largest: int, link: Link) -> Int64Array | None:
        layers, ranks = self._layout.shape.layers, self._topology.ranks
        if not self._layout.slot_words:
            return None
        loads_W = self._loads_W.copy()
        self._loads_W[:] = 0
        if not self._own_slots:
            return loads_W.reshape(layers, ranks, -1)
        return loads_W.reshape(ranks, layers, -1).transpose(1, 0, 2)

    def on_request(self, steps: int, link: Link) -> tuple[None, None]:
        return None, None
