"""Heat collection alone: what an engine with its own planner adopts first."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.distributed as dist

from isotherm.control import GroupLink, Heartbeat, Link, Span, check_peers, no_span
from isotherm.heat.gather import HeatGather
from isotherm.heat.kernels import count_ids, warm_up
from isotherm.heat.snapshots import SnapshotRing
from isotherm.heat.totals import Totals
from isotherm.placement import Placement
from isotherm.streams import Completion, backend_for, count_wait, forward_path
from isotherm.topology import MoEShape, Topology
from isotherm.window import KINDS, HeatWindow

Source = Literal["ids", "received"]

WARM_DTYPES = (torch.int64, torch.int32)
"""Ids of these are counted as they are, others by way of int64: nothing compiles while serving."""


class HeatCollector:
    """Counts the tokens of every expert and gathers them over the ranks beside the engine.

    Args:
        shape: the model's MoE layers.
        topology: the expert-parallel group; its ranks are the ranks of ``group``.
        group: a process group over CPU memory (gloo) that nobody else uses; None when the collector is
            part of a balancer, which makes the rounds.
        source: what the engine hands over. ``ids``: the logical experts of this rank's own tokens,
            counted on the engine's stream. ``received``: tokens per local slot after dispatch, added on
            the side stream and folded to logical experts through ``placement``.
        window_steps: steps in a window, at least. slices: parts of a window, which must divide it.
        placement: which expert each slot holds, for ``received``; None: slot ``p`` holds ``p % E``.
        device: where counts live.
        inline: do everything on the calling thread and the engine's stream, a round at the end of each
            step: the A/B and the kill switch. Every other call is the same, and so are the windows.
        span: opens spans of a timeline.

    One side stream is made here and closed here; the engine's stream never waits for it. Calls on the
    forward path (``count``, ``count_ids``, ``end_step``) never wait, except with ``inline``.

    Raises:
        ValueError: sizes that do not fit together.
        PeerMismatchError: a rank was built with other arguments; on every rank.
    """

    def __init__(
        self,
        shape: MoEShape,
        topology: Topology,
        group: dist.ProcessGroup | None,
        *,
        source: Source = "ids",
        window_steps: int = 256,
        slices: int = 2,
        placement: Placement | None = None,
        device: torch.device | str = "cpu",
        inline: bool = False,
        heartbeat_seconds: float = 0.02,
        span: Span = no_span,
    ) -> None:
        if source not in get_args(Source):
            raise ValueError(f"source={source!r} is unknown: choose one of {get_args(Source)}")
        if window_steps < 1 or slices < 1 or window_steps % slices:
            raise ValueError(f"window_steps={window_steps} must be a positive multiple of slices={slices}")
        topology.check_holds(shape.experts)
        self._shape = shape
        self._source = source
        self._inline = inline
        self._snapshot_steps = window_steps // slices
        self._backend = backend_for(device)
        self._side = self._backend.main_stream() if inline else self._backend.side_stream("heat")
        self.totals = Totals(shape, topology, self._backend.device)
        self._ring = SnapshotRing(self.totals.flat, self._backend, span=span)
        self.gather = HeatGather(
            shape,
            topology,
            self.totals,
            self._ring,
            window_steps=window_steps,
            deliver=self._keep,
            span=span,
        )
        self._windows: deque[HeatWindow] = deque()
        self._callback: Callable[[HeatWindow], None] | None = None
        self._tokens_K = [0] * len(KINDS)
        self._owned: deque[Completion] = deque()
        self.step = 0
        self._heartbeat: Heartbeat | None = None
        if group is not None:
            link = GroupLink(group)
            self._check_group(link, topology, window_steps, slices)
            warm_up()
            self._fold_through(placement or Placement.default(shape, topology), topology, link.rank)
            self._heartbeat = Heartbeat(link, [self.gather], interval_seconds=heartbeat_seconds, span=span)
            if not inline:
                self._heartbeat.start()

    def count_ids(
        self, layer: int, ids_TK: torch.Tensor, *, num_tokens: int | None = None, num_decode: int = 0
    ) -> None:
        """Counts this rank's own tokens of one layer, on the engine's stream.

        Args:
            layer: index of the MoE layer, from 0.
            ids_TK: logical experts, integer [tokens, top_k]; negative for none.
            num_tokens: real tokens, the first rows; None: all. The rest is padding.
            num_decode: decode tokens among them, the first rows.
        """
        num_tokens = len(ids_TK) if num_tokens is None else min(num_tokens, len(ids_TK))
        heat_KLE = self.totals.heat_KLE
        if ids_TK.device.type == "cpu":
            prefill_E, decode_E = heat_KLE[0, layer].numpy(), heat_KLE[1, layer].numpy()
            known_TK = ids_TK.contiguous() if ids_TK.dtype in WARM_DTYPES else ids_TK.long().contiguous()
            count_ids(known_TK.numpy(), num_tokens, num_decode, prefill_E, decode_E)
            return
        _add_ids(heat_KLE[1, layer], ids_TK[:num_decode])
        _add_ids(heat_KLE[0, layer], ids_TK[num_decode:num_tokens])

    def count(
        self,
        layer: int,
        counts_S: torch.Tensor,
        *,
        cumulative: bool = False,
        borrowed: bool = True,
        kind: Literal["prefill", "decode"] = "prefill",
    ) -> None:
        """Adds tokens that this rank's slots received in one layer, on the side stream. Never waits.

        Args:
            layer: index of the MoE layer, from 0.
            counts_S: tokens per local slot, integer [slots_per_rank].
            cumulative: ``counts_S`` is a running sum over the slots.
            borrowed: the engine will overwrite or free ``counts_S`` after this call, so it is copied on
                the engine's stream first. False: the engine hands it over and never touches it again.
            kind: what the tokens are.
        """
        with forward_path():
            main = self._backend.main_stream()
            handed_S = counts_S.clone() if borrowed else counts_S
            heat_E = self.totals.heat_KLE[KINDS.index(kind), layer]
            slots_S = self.totals.slots_LP[layer, self._local]
            experts_S = self._experts_LS[layer]
            if not self._inline:
                # The side stream reads what the engine's stream has just written.
                self._side.wait_event(main.record_event())
            self._side.submit(
                lambda: _fold(handed_S, cumulative, experts_S, heat_E, slots_S),
                reads=[handed_S, experts_S],
                writes=[heat_E, slots_S],
            )
            # Nobody waits for the side, so the counts must outlive the engine's interest in them.
            self._owned.append(Completion(self._side.record_event(), handed_S))

    def end_step(self, *, num_tokens: int, num_decode: int = 0) -> None:
        """Ends a step of the engine: ``num_tokens`` real tokens of this rank, ``num_decode`` of them
        decode tokens; 0 for a dummy step. Every rank ends the same steps. Never waits."""
        with forward_path():
            self.advance(num_tokens=num_tokens, num_decode=num_decode)
            if self._inline and self._heartbeat is not None:
                count_wait()
                self._heartbeat.beat()

    def advance(self, *, num_tokens: int, num_decode: int, snapshots: bool = True) -> None:
        """Ends a step without a round: for the balancer, which makes its own."""
        self._tokens_K[0] += num_tokens - num_decode
        self._tokens_K[1] += num_decode
        self.step += 1
        while self._owned and self._owned[0].done():
            self._owned.popleft()
        if not snapshots or self.step % self._snapshot_steps:
            return
        main = self._backend.main_stream()
        counting = self._side if self._source == "received" else main
        taken = self._ring.try_take(self.step, tuple(self._tokens_K), counting, self._side)
        if taken and self._heartbeat is not None:
            self._heartbeat.poke()

    @property
    def gathered_step(self) -> int:
        """Heat of all ranks is gathered up to this step."""
        return self.gather.gathered_step

    @property
    def skipped_snapshots(self) -> int:
        """Snapshots for which no buffer was free; their counts came with the next."""
        return self._ring.skipped

    def poll(self) -> HeatWindow | None:
        """The oldest window not yet taken, the same on every rank, or None. Never waits."""
        return self._windows.popleft() if self._windows else None

    def on_window(self, callback: Callable[[HeatWindow], None]) -> None:
        """Calls ``callback`` with each window from now on, off the forward thread (on it with
        ``inline``); ``poll`` then returns none."""
        self._callback = callback

    def close(self, timeout_seconds: float = 30.0) -> None:
        """Ends collection; called on every rank. Twice is allowed."""
        if self._heartbeat is not None:
            self._heartbeat.close(timeout_seconds)
            self._heartbeat = None
        self._side.close()

    def _keep(self, window: HeatWindow) -> None:
        if self._callback is not None:
            self._callback(window)
        else:
            self._windows.append(window)

    def _fold_through(self, placement: Placement, topology: Topology, rank: int) -> None:
        first = rank * topology.slots_per_rank
        self._local = slice(first, first + topology.slots_per_rank)
        experts_LS = placement.slot_to_expert[:, self._local].astype("int64")
        self._experts_LS = torch.from_numpy(experts_LS).to(self._backend.device)

    def _check_group(self, link: Link, topology: Topology, window_steps: int, slices: int) -> None:
        if link.size != topology.ranks:
            raise ValueError(
                f"the group has {link.size} ranks, the topology {topology.ranks}: give a group of all "
                "expert-parallel ranks"
            )
        settings: dict[str, object] = {
            "shape": self._shape,
            "topology": topology,
            "source": self._source,
            "window_steps": window_steps,
            "slices": slices,
            "inline": self._inline,
        }
        check_peers(link, settings)


def _add_ids(counts_E: torch.Tensor, ids_TK: torch.Tensor) -> None:
    """Adds one for each id that is not negative, without telling the host how many there are."""
    flat = ids_TK.reshape(-1).long()
    counts_E.scatter_add_(0, flat.clamp_min(0), (flat >= 0).to(counts_E.dtype))


def _fold(
    counts_S: torch.Tensor,
    cumulative: bool,
    experts_S: torch.Tensor,
    heat_E: torch.Tensor,
    slots_S: torch.Tensor,
) -> None:
    """Adds received counts to their slots and to the experts that these hold."""
    counts_S = counts_S.to(heat_E.dtype)
    if cumulative:
        counts_S = torch.diff(counts_S, prepend=counts_S.new_zeros(1))
    slots_S.add_(counts_S)
    heat_E.scatter_add_(0, experts_S.clamp_min(0), counts_S * (experts_S >= 0))
