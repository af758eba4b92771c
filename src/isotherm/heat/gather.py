"""Snapshots of all ranks become windows: agree on a step, take differences, add them up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from isotherm.arrays import Int32Array, Int64Array
from isotherm.control import Link, Span, no_span
from isotherm.heat.exchange import Exchange
from isotherm.heat.snapshots import BUFFERS, Snapshot, SnapshotRing
from isotherm.streams import Backend
from isotherm.topology import MoEShape
from isotherm.window import KINDS, HeatWindow

logger = logging.getLogger("isotherm")

_NONE = -1
_INT32_MAX = 2**31 - 1
_WORDS = 2  # per buffer: the step of its snapshot, the largest count since the last gathered one


@dataclass(frozen=True, eq=False)
class _Slice:
    heat_KLE: Int64Array
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

    header_words = _WORDS * BUFFERS

    def __init__(
        self,
        shape: MoEShape,
        ring: SnapshotRing,
        exchange: Exchange,
        backend: Backend,
        *,
        window_steps: int,
        deliver: Callable[[HeatWindow], None],
        span: Span = no_span,
    ) -> None:
        self._shape = shape
        self._ring = ring
        self._exchange = exchange
        self._backend = backend
        self._window_steps = window_steps
        self._deliver = deliver
        self._span = span
        self._base_tokens_K = (0,) * len(KINDS)
        self._base_step = 0
        self._window_start = 0
        self.gathered_step = 0
        self._pending: list[_Slice] = []
        self._held: dict[int, Snapshot] = {}

    def deliver_to(self, deliver: Callable[[HeatWindow], None]) -> None:
        """Passes windows to ``deliver`` from now on. What it raises is a failure of this participant."""
        self._deliver = deliver

    def header(self) -> Sequence[int]:
        self._held = {}
        words: list[int] = []
        for snapshot in self._ring.landed():
            largest = self._largest_since_base(snapshot)
            if largest is None:
                self._ring.drop(snapshot)
                continue
            self._held[snapshot.step] = snapshot
            words += (snapshot.step, largest)
        return words + [_NONE] * (self.header_words - len(words))

    def act(self, headers_GW: Int64Array, link: Link) -> bool:
        steps_GB = headers_GW[:, 0::_WORDS]
        held = [set(row_B[row_B != _NONE].tolist()) for row_B in steps_GB]
        if not all(held):
            # Nothing is common; whoever holds something waits for the others, who will say so.
            return False
        common = set.intersection(*held)
        if common:
            step = max(common)
            largest = int(headers_GW[:, 1::_WORDS][steps_GB == step].sum())
            self._gather(self._held[step], largest, link)
        self._ring.drop_below(max(min(steps) for steps in held))
        return bool(common)

    def rejoin(self, link: Link) -> None:
        """A window begins at the newest step whose snapshot any rank has begun to gather. What came since the
        last window is left out on every rank: some know its sums, and others do not."""
        words_W = np.array([self._base_step, self._window_start], np.int64)
        words_GW = link.all_gather(words_W)
        step, steps = int(words_GW[:, 0].max()), int(words_GW[:, 0].max() - words_GW[:, 1].min())
        for snapshot in self._ring.landed():
            # A rank that is behind has told the others of it, and so holds it.
            if snapshot.step == step:
                self._read(snapshot, self._exchange.take)
                self._base_tokens_K = snapshot.tokens_K
        self._held.clear()
        self._ring.drop_below(step + 1)
        # Begun anew by asking for them.
        self._exchange.loads(_INT32_MAX + 1, link)
        self._exchange.on_request(steps, link)
        self._pending.clear()
        self._window_start = self.gathered_step = self._base_step = step

    def _gather(self, snapshot: Snapshot, largest: int, link: Link) -> None:
        """``largest`` bounds every count once it is summed over the ranks."""
        with self._span(f"gather to step {snapshot.step}", "heartbeat"):
            self._read(snapshot, self._exchange.take)
            self._base_step = snapshot.step
            tokens_K = np.subtract(snapshot.tokens_K, self._base_tokens_K)
            heat_KLE, tokens_K = self._exchange.heat(tokens_K, largest, link)
            self._pending.append(_Slice(heat_KLE, tokens_K, snapshot.step))
            self._base_tokens_K = snapshot.tokens_K
            self._held.clear()
            self._ring.drop_below(snapshot.step + 1)
            if is_whole := snapshot.step - self._window_start >= self._window_steps:
                loads_LGS = self._exchange.loads(largest, link)
                asked = self._exchange.on_request(snapshot.step - self._window_start, link)
        if is_whole:
            self._deliver_window(loads_LGS, *asked)
        # Last: whoever sees it finds the window delivered.
        self.gathered_step = snapshot.step

    def _deliver_window(
        self,
        loads_LGS: Int64Array | None,
        active_LE: Int64Array | None,
        source_NLE: Int64Array | None,
    ) -> None:
        slices, self._pending = self._pending, []
        borders = (self._window_start, *(each.end_step for each in slices))
        self._window_start = borders[-1]
        window = HeatWindow(
            heat_KSLE=np.stack([each.heat_KLE for each in slices], axis=1),
            slot_load_LGS=loads_LGS,
            slice_steps=borders,
            tokens_K=np.sum([each.tokens_K for each in slices], axis=0),
            layer_ids=self._shape.ids,
            active_steps_LE=active_LE,
            source_heat_NLE=source_NLE,
        )
        logger.debug(
            "isotherm: window of steps %d to %d, heat %s, %d tokens",
            window.start_step,
            window.end_step,
            window.heat_KSLE.shape,
            window.tokens_K.sum(),
        )
        self._deliver(window)

    def _largest_since_base(self, snapshot: Snapshot) -> int | None:
        largest = self._read(snapshot, lambda words: self._exchange.largest_since_base(words, snapshot.step))
        if largest is None:
            return None
        return max(largest, sum(snapshot.tokens_K) - sum(self._base_tokens_K))

    def _read(self, snapshot: Snapshot, reader: Callable[[Int32Array], int | None]) -> int | None:
        """What ``reader`` makes of the snapshot's words, declared as a read of this thread."""
        found: list[int | None] = []
        self._backend.caller_stream().submit(
            lambda: found.append(reader(snapshot.host.numpy())), reads=[snapshot.host]
        )
        return found[0]
