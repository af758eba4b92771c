"""Snapshots of all ranks become windows: agree on a step, take differences, add them up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from isotherm.arrays import Int32Array, Int64Array
from isotherm.control import Link, Span, no_span
from isotherm.heat.snapshots import Snapshot, SnapshotRing
from isotherm.heat.totals import Totals
from isotherm.topology import MoEShape, Topology
from isotherm.window import KINDS, HeatWindow

logger = logging.getLogger("isotherm")

_NONE = -1
_INT32_SAFE_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class _Slice:
    heat_KLE: Int64Array
    slots_LP: Int64Array
    tokens_K: Int64Array
    end_step: int


class HeatGather:
    """Heartbeat participant that turns snapshots into windows, the same on every rank.

    Each rank's header lists the snapshots that it holds. The newest step that all ranks hold is
    gathered: the difference to the last gathered step is summed over the ranks and becomes a slice. Slices
    that span ``window_steps`` or more become a window, passed to ``deliver`` on the heartbeat's thread;
    where rounds lag behind the engine, slices get longer, and fewer. Snapshots older
    than some rank's oldest can never be common and are dropped; totals run on, so nothing is lost.
    """

    def __init__(
        self,
        shape: MoEShape,
        topology: Topology,
        totals: Totals,
        ring: SnapshotRing,
        *,
        window_steps: int,
        deliver: Callable[[HeatWindow], None],
        span: Span = no_span,
    ) -> None:
        self.header_words = 2 * ring.buffers
        self._shape = shape
        self._topology = topology
        self._totals = totals
        self._ring = ring
        self._window_steps = window_steps
        self._deliver = deliver
        self._span = span
        size = totals.flat.numel()
        self._base = np.zeros(size, np.int32)
        self._base_tokens_K = (0,) * len(KINDS)
        self._base_step = 0
        self.gathered_step = 0
        self._narrow = np.zeros(size + len(KINDS), np.int32)
        self._wide = np.zeros(size + len(KINDS), np.int64)
        self._pending: list[_Slice] = []
        self._held: dict[int, Snapshot] = {}

    def header(self) -> Sequence[int]:
        self._held = {snapshot.step: snapshot for snapshot in self._ring.landed()}
        words: list[int] = []
        for snapshot in self._held.values():
            words += (snapshot.step, sum(snapshot.tokens_K) - sum(self._base_tokens_K))
        return words + [_NONE] * (self.header_words - len(words))

    def act(self, headers_GW: Int64Array, link: Link) -> None:
        steps_GB = headers_GW[:, 0::2]
        held = [set(row_B[row_B != _NONE].tolist()) for row_B in steps_GB]
        if not all(held):
            return
        common = set.intersection(*held)
        if common:
            step = max(common)
            tokens = int(headers_GW[:, 1::2][steps_GB == step].sum())
            self._gather(self._held[step], tokens, link)
        self._ring.drop_below(max(min(steps) for steps in held))

    def _gather(self, snapshot: Snapshot, tokens: int, link: Link) -> None:
        with self._span(f"gather to step {snapshot.step}", "heartbeat"):
            summed = self._reduce(snapshot, tokens, link)
        heat_KLE, slots_LP = self._totals.split(summed[: -len(KINDS)])
        tokens_K = summed[-len(KINDS) :]
        self._pending.append(_Slice(heat_KLE, slots_LP, tokens_K, snapshot.step))
        self._base[:] = snapshot.flat.numpy()
        self._base_tokens_K = snapshot.tokens_K
        self._held.clear()
        self._ring.drop_below(snapshot.step + 1)
        self.gathered_step = snapshot.step
        if snapshot.step - self._base_step >= self._window_steps:
            self._deliver_window()

    def _reduce(self, snapshot: Snapshot, tokens: int, link: Link) -> Int64Array:
        """The difference to the last gathered snapshot, summed over the ranks."""
        wire: Int32Array | Int64Array
        # No entry exceeds the tokens of all ranks, so four bytes do unless those overflow.
        wire = self._narrow if tokens <= _INT32_SAFE_TOKENS else self._wide
        # The wrap of int32 makes the difference right modulo 2^32; read it as unsigned.
        difference = (snapshot.flat.numpy() - self._base).view(np.uint32)
        wire[: -len(KINDS)] = difference.view(np.int32) if wire is self._narrow else difference
        wire[-len(KINDS) :] = np.subtract(snapshot.tokens_K, self._base_tokens_K)
        link.all_reduce(wire)
        return wire.astype(np.int64)

    def _deliver_window(self) -> None:
        slices, self._pending = self._pending, []
        borders = (self._base_step, *(each.end_step for each in slices))
        self._base_step = borders[-1]
        slot_load_LP = np.sum([each.slots_LP for each in slices], axis=0)
        window = HeatWindow(
            heat_KSLE=np.stack([each.heat_KLE for each in slices], axis=1),
            slot_load_LGS=slot_load_LP.reshape(self._shape.layers, self._topology.ranks, -1),
            slice_steps=borders,
            tokens_K=np.sum([each.tokens_K for each in slices], axis=0),
            layer_ids=self._shape.ids,
        )
        logger.debug(
            "isotherm: window of steps %d to %d, heat %s, %d tokens",
            window.start_step,
            window.end_step,
            window.heat_KSLE.shape,
            window.tokens_K.sum(),
        )
        self._deliver(window)
