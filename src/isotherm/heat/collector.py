"""Heat collection alone: what an engine with its own planner adopts first."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.distributed as dist

from isotherm.control import Callbacks, GroupLink, Heartbeat, Link, Span, check_peers, no_span
from isotherm.heat.aside import DeviceGroup, TorchDeviceGroup
from isotherm.heat.buffers import Asked, Source, make_heat_buffers, memory_of_heat
from isotherm.heat.gather import HeatGather
from isotherm.heat.ids import IdCounts, warm_up
from isotherm.numbers import Number
from isotherm.placement import Placement, digest
from isotherm.status import Memory
from isotherm.streams import Backend, Home, Stream, backend_for, count_wait, forward_path
from isotherm.topology import MoEShape, Topology
from isotherm.window import KINDS, HeatWindow

logger = logging.getLogger("isotherm")

Kind = Literal["prefill", "decode"]

_KEPT_WINDOWS = 256
"""Windows that wait for `HeatCollector.poll`: half a megabyte each for DeepSeek-V3's shape."""


class HeatCollector:
    """Counts the tokens of every expert and gathers them over the ranks beside the engine.

    Args:
        shape: the model's MoE layers.
        topology: the expert-parallel group; its ranks are the ranks of ``group``.
        group: a process group over CPU memory (gloo) that nobody else uses; None when the collector is
            part of something that makes the rounds itself, and says which ``rank`` this is.
        source: what the engine hands over. ``ids``: the logical experts of this rank's own tokens,
            counted on the engine's stream. ``received``: tokens per local slot after dispatch, folded to
            logical experts through the placement in force.
        window_steps: steps in a window, at least. slices: parts of a window, which must divide it.
        placement: which expert each slot holds, for ``received``; None: slot ``p`` holds ``p % E``.
        active_steps: windows tell in how many steps each expert had a token, which costs a pass over the
            totals at the end of each step (`OnRequest.active_steps` says how exact it is). source_heat: they
            tell heat by the node that owns the tokens. Neither with ``received`` nor ``device_group``.
        micro_batches: batches of one step that may be counted at once, from streams of their own.
        device: where counts live. backend: its streams, where they are not the device's own (a detector
            of races around them, say).
        device_group: a group over device memory whose collectives the engine orders with its own. Given:
            heat is gathered there, on the side stream, by two or three collectives at each snapshot.
        inline: do everything on the calling thread and the engine's stream, a round at the end of each
            step: the A/B and the kill switch. Every other call is the same, and so are the windows.
        span: opens spans of a timeline.

    One side stream is made here and closed here; the engine's stream never waits for it. Calls on the
    forward path (``count``, ``count_ids``, ``load_placement``, ``end_step``) never wait, except with
    ``inline``. All are made on the engine's thread; those of a further micro-batch may come from another.
    ``end_step`` is called on a stream that is ordered behind every stream that counted in the step, and the
    next step's counting is ordered behind it; counts are undefined unless that holds.

    Raises:
        ValueError: sizes that do not fit together.
        PeerMismatchError: a rank was built with other arguments; on every rank.
    """

    def __init__(
        self,
        shape: MoEShape,
        topology: Topology,
        group: dist.ProcessGroup | Link | None,
        *,
        source: Source = "ids",
        window_steps: int = 256,
        slices: int = 2,
        placement: Placement | None = None,
        active_steps: bool = False,
        source_heat: bool = False,
        micro_batches: int = 1,
        device: torch.device | str = "cpu",
        backend: Backend | None = None,
        device_group: dist.ProcessGroup | DeviceGroup | None = None,
        inline: bool = False,
        rank: int = 0,
        heartbeat_seconds: float = 0.02,
        span: Span = no_span,
    ) -> None:
        _check_arguments(source, window_steps, slices, micro_batches)
        topology.check_holds(shape.experts)
        placement = placement or Placement.default(shape, topology)
        placement.check_fits(shape, topology)
        self._shape, self._topology = shape, topology
        self._source: Source = source
        self._inline = inline
        self._snapshot_steps = window_steps // slices
        self._backend = backend or backend_for(device)
        self._side: Stream | None = None if inline else self._backend.side_stream("heat")
        link = _link_of(group)
        buffers = make_heat_buffers(
            shape,
            topology,
            source,
            rank=link.rank if link else rank,
            placement=placement,
            micro_batches=micro_batches,
            backend=self._backend,
            side=self._side,
            device_group=_device_group_of(device_group),
            asked=Asked(active_steps, source_heat),
            span=span,
        )
        self.totals, self._received, self._ring = buffers.totals, buffers.received, buffers.ring
        self._active = buffers.active
        self._ids = IdCounts(self.totals.heat_MKLE)
        self.gather = HeatGather(
            shape,
            self._ring,
            buffers.exchange,
            self._backend,
            window_steps=window_steps,
            deliver=self._keep,
            span=span,
        )
        self._windows: deque[HeatWindow] = deque(maxlen=_KEPT_WINDOWS)
        self._has_dropped = False
        self._callbacks: Callbacks[HeatWindow] = Callbacks("on_window")
        self._is_closed = False
        self._home = Home("collector")
        self._tokens_K = [0] * len(KINDS)
        self.step = 0
        self._heartbeat: Heartbeat | None = None
        if link is None:
            return
        settings = {
            "shape": shape,
            "topology": topology,
            "source": source,
            "window_steps": window_steps,
            "slices": slices,
            "active_steps": active_steps,
            "source_heat": source_heat,
            "placement": digest(placement.slot_to_expert.tobytes()),
            "gathers": "on the device" if device_group is not None else "on the host",
            "inline": inline,
        }
        _check_group(link, topology, settings)
        warm_up()
        self._heartbeat = self._make_heartbeat(link, window_steps, heartbeat_seconds, span)
        if not inline:
            self._heartbeat.start()

    def _make_heartbeat(self, link: Link, window_steps: int, seconds: float, span: Span) -> Heartbeat:
        return Heartbeat(
            link,
            [self.gather],
            interval_seconds=seconds,
            step=lambda: self.step,
            lag_steps=4 * window_steps,
            span=span,
        )

    @staticmethod
    def memory(
        shape: MoEShape,
        topology: Topology,
        *,
        source: Source = "ids",
        active_steps: bool = False,
        source_heat: bool = False,
        micro_batches: int = 1,
        device: torch.device | str = "cpu",
        device_group: bool = False,
        inline: bool = False,
    ) -> Memory:
        """Bytes of all buffers that a collector with these arguments makes, once, when it is built; nothing
        is made here. ``device_group``: whether one is given. Beside a CPU the device's buffers are host
        memory too."""
        heat = memory_of_heat(
            shape,
            topology,
            source,
            micro_batches=micro_batches,
            queues_work=torch.device(device).type != "cpu",
            inline=inline,
            on_device=device_group,
            asked=Asked(active_steps, source_heat),
        )
        return heat + Heartbeat.memory(topology.ranks, HeatGather.header_words)

    def count_ids(
        self,
        layer: int,
        ids_TK: torch.Tensor,
        *,
        num_tokens: Number | None = None,
        num_decode: Number = 0,
        first_token: Number = 0,
        micro_batch: int = 0,
    ) -> None:
        """Counts this rank's own tokens of one layer, on the engine's stream. Never waits.

        Args:
            layer: index of the MoE layer, from 0.
            ids_TK: logical experts, any integer dtype and strides, [tokens, top_k]; negative for none.
            num_tokens: real tokens of this rank, from row ``first_token`` on; None: all rows. The others
                are padding, or tokens of other ranks, which these count.
            num_decode: decode tokens among them, the first ones.
            micro_batch: which of the step's batches this is, from 0.

        The numbers are plain, or tensors of one integer on the device of the ids, which the host never
        reads.
        """
        with forward_path():
            self._ids.count(
                layer,
                ids_TK,
                first_token=first_token,
                num_tokens=len(ids_TK) if num_tokens is None else num_tokens,
                num_decode=num_decode,
                micro_batch=micro_batch,
            )

    def count_ids_captured(
        self, layer: int, ids_TK: torch.Tensor, state: torch.Tensor, *, micro_batch: int = 0
    ) -> None:
        """As `count_ids`, for regions that `torch.compile` compiles or a device captures as a graph: one
        operator, ``isotherm::count``. ``state``, int64 [4] on the ids' device, is read at each replay: step
        (not used here), first_token, num_tokens, num_decode; the engine writes to it between replays, and
        never replaces it. `end_step` stays outside of the region."""
        self._ids.count_captured(layer, ids_TK, state, micro_batch=micro_batch)

    def count(
        self,
        layer: int,
        counts_S: torch.Tensor,
        *,
        cumulative: bool = False,
        borrowed: bool = True,
        kind: Kind = "prefill",
        micro_batch: int = 0,
    ) -> None:
        """Adds tokens that this rank's slots received in one layer. Never waits.

        Args:
            layer: index of the MoE layer, from 0.
            counts_S: tokens per local slot, integer [slots_per_rank].
            cumulative: ``counts_S`` is a running sum over the slots.
            borrowed: the engine will overwrite or free ``counts_S`` after this call, so it is added on the
                engine's stream. False: the engine hands it over and never writes to it again; it is added
                on the side stream and let go when that is done.
            kind: what the tokens are.
            micro_batch: which of the step's batches this is, from 0.

        Raises:
            ValueError: the collector was not built with ``source="received"``, or another number of slots.
        """
        if self._received is None:
            raise ValueError(
                f"count() takes received counts, and this collector was built with source={self._source!r}: "
                "build it with source='received', or call count_ids()"
            )
        if self._is_closed:
            return
        with forward_path():
            self._received.count(
                layer,
                counts_S,
                KINDS.index(kind),
                cumulative=cumulative,
                borrowed=borrowed,
                micro_batch=micro_batch,
            )

    def load_placement(self, placement: Placement) -> None:
        """From here on, in the order of the engine's stream, the slots hold what ``placement`` says: counts
        handed over before go to the experts that the slots held before. Between two steps. Never waits.

        Raises:
            ValueError: a placement of another shape.
        """
        placement.check_fits(self._shape, self._topology)
        if self._received is None or self._is_closed:
            return
        with forward_path():
            self._received.load(placement, self._backend.main_stream(), self._side)

    def end_step(self, *, num_tokens: Number, num_decode: Number = 0) -> None:
        """Ends a step of the engine: ``num_tokens`` real tokens of this rank, ``num_decode`` of them
        decode tokens; 0 for a dummy step. Plain numbers, or tensors of one integer on the device. Every
        rank ends the same steps. Never waits.

        Raises:
            IsothermError: the process was forked since the collector was built.
        """
        self._home.check()
        with forward_path():
            self.advance(num_tokens=num_tokens, num_decode=num_decode)
            if self._inline and self._heartbeat is not None:
                count_wait()
                self._heartbeat.beat()

    def advance(self, *, num_tokens: Number, num_decode: Number, snapshots: bool = True) -> None:
        """Ends a step without a round: for the balancer, which makes its own."""
        self.step += 1
        if self._is_closed:
            return
        self._add_tokens(num_tokens, num_decode)
        main = self._backend.main_stream()
        if self._received is not None:
            self._received.hand_over(main, self._side)
        if self._active is not None:
            self._active.mark(main)
        if not snapshots or self.step % self._snapshot_steps:
            return
        if self._received is not None:
            self._received.fold(main, self._side)
        taken = self._ring.try_take(self.step, tuple(self._tokens_K), main, self._side)
        if taken and self._heartbeat is not None:
            self._heartbeat.poke()

    def _add_tokens(self, num_tokens: Number, num_decode: Number) -> None:
        if isinstance(num_tokens, int) and isinstance(num_decode, int):
            self._tokens_K[0] += num_tokens - num_decode
            self._tokens_K[1] += num_decode
            return
        prefill, decode = self.totals.tokens_MK[0]
        prefill.add_(_scalar(num_tokens)).sub_(_scalar(num_decode))
        decode.add_(_scalar(num_decode))

    @property
    def gathered_step(self) -> int:
        """Heat of all ranks is gathered up to this step."""
        return self.gather.gathered_step

    @property
    def skipped_snapshots(self) -> int:
        """Snapshots for which no buffer was free; their counts came with the next."""
        return self._ring.skipped

    def poll(self) -> HeatWindow | None:
        """The oldest window not yet taken, the same on every rank, or None; the newest 256 are kept. Never
        waits."""
        return self._windows.popleft() if self._windows else None

    def on_window(self, callback: Callable[[HeatWindow], None]) -> None:
        """Calls ``callback`` with each window from now on, beside others that are called already, off the
        forward thread (on it with ``inline``); ``poll`` then returns none. What it raises is logged, and
        collection goes on."""
        self._callbacks.add(callback)

    def close(self, timeout_seconds: float = 30.0) -> None:
        """Ends collection; called on every rank, on the engine's thread. Twice is allowed. Waits for the
        other ranks, at most ``timeout_seconds``. Steps that the engine makes afterwards are not counted."""
        self._is_closed = True
        if not self._home.is_here:
            return
        if self._heartbeat is not None:
            self._heartbeat.close(timeout_seconds)
            self._heartbeat = None
        if self._side is not None:
            self._side.close()

    def _keep(self, window: HeatWindow) -> None:
        if self._callbacks:
            self._callbacks(window)
            return
        if len(self._windows) == _KEPT_WINDOWS and not self._has_dropped:
            self._has_dropped = True
            logger.warning(
                "isotherm: %d windows wait for poll(), and older ones are dropped from here on: call it, or "
                "on_window()",
                _KEPT_WINDOWS,
            )
        self._windows.append(window)


def _scalar(number: Number) -> Number:
    return number.reshape(()) if isinstance(number, torch.Tensor) else number


def _check_arguments(source: str, window_steps: int, slices: int, micro_batches: int) -> None:
    if source not in get_args(Source):
        raise ValueError(f"source={source!r} is unknown: choose one of {get_args(Source)}")
    if window_steps < 1 or slices < 1 or window_steps % slices:
        raise ValueError(f"window_steps={window_steps} must be a positive multiple of slices={slices}")
    if micro_batches < 1:
        raise ValueError(f"micro_batches={micro_batches} is below 1: a step has at least one batch")


def _link_of(group: dist.ProcessGroup | Link | None) -> Link | None:
    return GroupLink(group) if isinstance(group, dist.ProcessGroup) else group


def _device_group_of(group: dist.ProcessGroup | DeviceGroup | None) -> DeviceGroup | None:
    return TorchDeviceGroup(group) if isinstance(group, dist.ProcessGroup) else group


def _check_group(link: Link, topology: Topology, settings: dict[str, object]) -> None:
    if link.size != topology.ranks:
        raise ValueError(
            f"the group has {link.size} ranks, the topology {topology.ranks}: give a group of all "
            "expert-parallel ranks"
        )
    check_peers(link, settings)
