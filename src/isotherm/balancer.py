"""The hall where heat, planner, mover, router and engine meet.

Four threads, each owning what it writes:

- the *engine's* thread begins and ends steps and routes. It counts, takes snapshots, and between two
  steps puts the newest tables in force. It never waits. What it does is in `isotherm.forward`.
- the *heartbeat's* thread makes rounds: it turns snapshots into windows, delivers plans, advances the
  ledger, keeps the state, and leaves new tables for the engine's thread to pick up: `hall/loop.py`.
- the *planner's* thread, on rank 0 alone, runs the mind on a window.
- the *carrier's* thread carries weights into dead slots.

What passes between them is an immutable object stored in one attribute, or handed over.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import Store

from isotherm import planner, router
from isotherm.config import MODES, Config, Mode, Split
from isotherm.control import GroupLink, Heartbeat, Limits, Link, Span, no_span
from isotherm.decide import Decision
from isotherm.forward import StepScope, StepWord, check_tokens
from isotherm.hall.held import HeldWeights
from isotherm.hall.loop import Loop
from isotherm.hall.relinking import relink_of
from isotherm.hall.rooms import (
    MakeTransport,
    OnArrival,
    Ways,
    check_alike,
    check_fit,
    device_of,
    host_stream,
    make_rooms,
    memory_of_rooms,
)
from isotherm.mover import HostTransport, Ledger, Tensors, Unequal, Weights, write_held
from isotherm.numbers import Number
from isotherm.placement import Placement
from isotherm.router import Dispatch
from isotherm.status import Memory, State, Statistics, TablesInForce
from isotherm.streams import Backend, Home, backend_for, count_wait, forward_path, forward_waits
from isotherm.topology import MoEShape, Topology
from isotherm.window import HeatWindow


class Balancer:
    """Keeps the ranks of one MoE engine at the same temperature.

    Args:
        shape: the model's MoE layers.
        topology: the expert-parallel group; its ranks are the ranks of ``group``.
        group: a gloo process group of the balancer's own, of all expert-parallel ranks.
        weights: for each layer, named tensors ``[slots_per_rank, ...]`` or lists of one per slot, in the
            order of this rank's slots; None: weights never move, shares may.
        placement: what the loaded weights are; None: slot ``p`` holds expert ``p % experts``.
        config: the settings, the same on every rank.
        micro_batches: batches of one step that may be routed at once, from streams of their own.
        device: where ids and tables live; None: the device of the weights, else the CPU. backend: its
            streams, where they are not the device's own (a detector of races around them, say).
        inline: make the rounds and the plans on the calling thread at the end of each step: the oracle
            of the tests, and the A/B. The forward pass then waits, and `Statistics.waits` says so.
        dispatch: ``"replicated"`` where every rank maps every token and keeps its own part.
        step_word: where tables may not differ between ranks for a single step, which is so with replicated
            dispatch, and where weights are to move in layers without redundant slots. Called once in each
            `begin_step` with this rank's word, an integer of 0 or more, which the engine lends to something
            that its ranks exchange in each step anyway; returns the least of the words that all ranks lent to
            one exchange, the same on every rank in the same step, however many steps ago that was. After a
            change of the group's ranks, it returns the greatest ``statistics().epoch`` of those that go on.
            Given, weights wait in buffers beside their slots, and are copied when all ranks have them.
        transport: makes what carries the weights.
        on_arrival: called with a layer, from 0, and a slot of this rank when new weights lie in it, before
            any token reaches it, off the engine's thread: makes what else the slot needs, and leaves the
            weights lent as they are. Returns when that is done; what it raises calls the plan off.
        limits: deadlines, and the pause after a failure; None: those that fit the window.
        store: where ranks find each other again after the group broke, the same on every rank; None: the one
            that torch.distributed was started with.
        span: opens spans of a timeline.

    Every rank makes the same steps, dummy ones included::

        with balancer.step(num_tokens=n):
            slots = balancer.route(layer, expert_ids)

    Building it blocks until every rank has built its own. Afterwards nothing here makes the engine's
    thread or stream wait. When anything of ours fails the engine goes on with what is published, and
    balancing is tried again by itself; docs/failures.md has a table.

    Raises:
        ValueError: sizes that do not fit together; the message names them.
        PeerMismatchError: a rank was started with another configuration; on every rank.
    """

    def __init__(
        self,
        shape: MoEShape,
        topology: Topology,
        *,
        group: dist.ProcessGroup | Link,
        weights: Weights | None,
        placement: Placement | None = None,
        config: Config | None = None,
        micro_batches: int = 1,
        device: torch.device | str | None = None,
        backend: Backend | None = None,
        inline: bool = False,
        dispatch: Dispatch = "sender",
        step_word: StepWord | None = None,
        transport: MakeTransport = HostTransport,
        on_arrival: OnArrival | None = None,
        limits: Limits | None = None,
        store: Store | None = None,
        span: Span = no_span,
    ) -> None:
        self.shape, self.topology = shape, topology
        self.config = config or Config()
        self._inline = inline
        self._link: Link = GroupLink(group) if isinstance(group, dist.ProcessGroup) else group
        topology.check_holds(shape.experts)
        placement = placement or Placement.default(shape, topology)
        check_fit(shape, topology, self._link, placement)
        planner.get_policy(self.config.policy)
        start = Ledger.start(placement, placement.even_shares())
        self._rooms = make_rooms(
            shape,
            topology,
            self.config,
            start,
            weights,
            rank=self._link.rank,
            micro_batches=micro_batches,
            backend=backend or backend_for(device or device_of(weights)),
            inline=inline,
            ways=Ways(dispatch, step_word, transport, on_arrival),
            on_carried=lambda: self._heartbeat.poke(),
            span=span,
        )
        self._collector, self._router = self._rooms.collector, self._rooms.router
        self._forward = self._rooms.forward
        self._scope = StepScope(self.begin_step, self.end_step)
        self._make_control(start, limits, span)
        self._closed = False
        self._home = Home("balancer")
        router.warm_up()
        planner.warm_up(near=self.config.split == "near")
        check_alike(self._link, self.config, self._rooms, topology, placement, inline=inline, limits=limits)
        if not inline:
            self._heartbeat.start(relink_of(self._link, store))

    def _make_control(self, start: Ledger, limits: Limits | None, span: Span) -> None:
        """Everything that takes part in rounds, and the rounds."""
        config = self.config
        steps_per_move = -(-self._rooms.bytes_per_expert // config.move_bytes_per_step)
        self._loop = loop = Loop(
            config,
            self.topology,
            self._rooms,
            start,
            rank=self._link.rank,
            limits=limits or Limits.of_window(config.window_steps, steps_per_move=steps_per_move),
            make_stream=host_stream("planner", inline=self._inline),
            poke=lambda: self._heartbeat.poke(),
            span=span,
        )
        self._collector.gather.deliver_to(loop.see_window)
        self._held = HeldWeights(self._rooms.slots, self._forward, loop, self.shape.layers, self._drive)
        self._heartbeat = Heartbeat(
            self._link,
            [loop.watch, self._collector.gather, loop.desk, loop.announcer, loop.mover, self._held.meeting],
            interval_seconds=config.heartbeat_seconds,
            step=lambda: self._collector.step,
            lag_steps=4 * config.window_steps,
            span=span,
            on_failure=lambda name, error: loop.watch.fail("room_failed", f"{name}: {error}"),
            on_lost=lambda error: loop.watch.lose(),
        )

    def _drive(self) -> None:
        """Brings the next round nearer."""
        if self._inline:
            self._heartbeat.beat()
        else:
            self._heartbeat.poke()

    # -- the engine's thread -------------------------------------------------------------------------

    def step(self, num_tokens: Number, *, num_decode_tokens: Number = 0) -> StepScope:
        """The scope of one forward pass: `begin_step` and `end_step` around its block."""
        check_tokens(num_tokens, num_decode_tokens)
        self._scope.tokens = (num_tokens, num_decode_tokens)
        return self._scope

    def begin_step(self, num_tokens: Number, *, num_decode_tokens: Number = 0) -> None:
        """Begins a forward pass: ``num_tokens`` real tokens of this rank, of which the first
        ``num_decode_tokens`` are decode tokens; 0 for a dummy step. Plain numbers, or tensors of one
        integer on the device, which the host never reads. Never waits.

        The newest tables are put in force here, and only here.

        Raises:
            ValueError: more decode tokens than tokens, or a negative number.
            IsothermError: the process was forked since the balancer was built.
        """
        check_tokens(num_tokens, num_decode_tokens)
        self._home.check()
        self._forward.begin(num_tokens, num_decode_tokens)

    def route(
        self,
        layer: int,
        expert_ids: torch.Tensor,
        *,
        num_tokens: Number | None = None,
        num_decode_tokens: Number | None = None,
        first_token: Number = 0,
        micro_batch: int = 0,
    ) -> torch.Tensor:
        """The slot of each (token, expert) pair: same shape and dtype; counted in the same pass.

        Args:
            layer: index of the MoE layer, from 0.
            expert_ids: the tokens, integer [tokens, top_k]; an id below 0 maps to -1 and counts nothing.
            num_tokens, num_decode_tokens: rows to count, and the decode tokens among them, where that
                differs from the step's (a micro-batch, padding between tokens).
            first_token: the first row to count. Other rows, padding or tokens of other ranks, are mapped
                and not counted: where every rank maps every token, each counts its own.
            micro_batch: which of the step's batches this is, from 0.

        Deterministic given the batch, the step and the tables in force. Never waits.
        """
        return self._forward.route(layer, expert_ids, num_tokens, num_decode_tokens, first_token, micro_batch)

    def route_captured(
        self, layer: int, expert_ids: torch.Tensor, state: torch.Tensor, *, micro_batch: int = 0
    ) -> torch.Tensor:
        """As `route`, for regions that `torch.compile` compiles or a device captures as a graph: one
        operator, ``isotherm::map_and_count``, that reads what changes from ``state`` at each replay.
        Elsewhere `route` costs less.

        Args:
            state: int64 [4] on the ids' device: step, first_token, num_tokens, num_decode_tokens; no tokens
                where nothing is to be counted. The engine writes to it between replays, in the order of its
                stream, and never replaces it. `begin_step` and `end_step` stay outside of the region.
        """
        return self._router.route_captured(layer, expert_ids, state, micro_batch=micro_batch)

    def end_step(self) -> None:
        """Ends the forward pass. Never waits, unless the balancer was built with ``inline``."""
        self._forward.end()
        if self._inline:
            with forward_path():
                count_wait()
                self._heartbeat.beat()
        elif self._collector.step % self.config.snapshot_steps == 0:
            self._heartbeat.poke()

    # -- anyone ---------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What the balancer is doing."""
        return self._loop.watch.state[0]

    @property
    def tables_in_force(self) -> tuple[TablesInForce, ...]:
        """Which tables this rank routes by, and since which step: the newest changes, oldest first."""
        return tuple(self._forward.tables_in_force)

    @property
    def placement(self) -> Placement:
        """What the slots hold now; dead ones are empty."""
        return self._loop.mover.ledger_in_force(self._forward.epoch).placement

    @property
    def rank(self) -> int:
        return self._link.rank

    def set_mode(self, mode: Mode) -> None:
        """Changes the mode from the next step on. Call it on every rank.

        Raises:
            ValueError: an unknown mode.
        """
        if mode not in MODES:
            raise ValueError(f"mode={mode!r} is unknown: choose one of {', '.join(MODES)}")
        self._rooms.ways.check(mode)
        self._forward.mode = mode

    def rebalance(self) -> None:
        """Plans on the newest window now, instead of at the end of the next, or as soon as what is under way
        has ended; after a failure too, without waiting for its pause to end. What was answered with no is
        looked at again. Whether weights move is still the mind's to decide. Call it on every rank, or on
        rank 0. Never waits."""
        self._loop.ask()
        self._heartbeat.poke()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes what the slots hold now, for `isotherm.read_placement` and ``placement=`` of the next start,
        which begins with even shares. Give all ranks the file of one: while weights move, those of others may
        be a round apart. The file appears whole, or stays as it was. Slots that are being filled are empty in
        it."""
        write_held(Path(path), self.placement, self.shape.ids, self.topology.ranks)

    def logical_state(self) -> list[dict[int, Tensors]]:
        """For each layer, the tensors of every expert that a slot of this rank holds, by name: views, right
        until this rank begins another step; copies of what slots that are being retired hold. Between steps,
        away from the forward path. Called between the same two steps on all ranks, every expert is on some
        rank.

        Raises:
            ValueError: the balancer was built without weights.
        """
        return self._held.logical_state()

    def reload(self, source: Mapping[tuple[int, int], Tensors], timeout_seconds: float = 60.0) -> None:
        """Refills every slot of this rank: ``source[layer, expert]`` has the tensors of an expert by name,
        and is asked for what the slots here hold. Between steps, on every rank; not on the forward path.

        Waits until every rank has come, gives up moves that are under way, and lets nothing move until every
        rank has refilled its slots: no old weights are carried into a new slot.

        Raises:
            LinkError: not every rank made this call in time. Nothing moves until all have.
            ValueError: the balancer was built without weights, or tensors of other names.
        """
        self._held.reload(source, timeout_seconds)

    def check_replicas(self, timeout_seconds: float = 60.0) -> tuple[Unequal, ...]:
        """Compares the bytes of all live replicas over all ranks, by checksums: those that differ from the
        first replica of their expert, the same on every rank. Between steps, on every rank; not on the
        forward path.

        Raises:
            LinkError: not every rank made this call in time.
            ValueError: the balancer was built without weights.
        """
        return self._held.check_replicas(timeout_seconds)

    def on_window(self, callback: Callable[[HeatWindow], None]) -> None:
        """Calls ``callback`` with each window, on every rank, off the engine's thread, beside others that are
        called already. What it raises is logged, and balancing goes on."""
        self._loop.on_window.add(callback)

    def on_decision(self, callback: Callable[[Decision], None]) -> None:
        """As `on_window`, with each decision, on rank 0."""
        self._loop.on_decision.add(callback)

    @staticmethod
    def memory(
        shape: MoEShape,
        topology: Topology,
        *,
        micro_batches: int = 1,
        bytes_per_expert: int = 0,
        split: Split = "shares",
        reads: bool = False,
        by_word: bool = False,
        device: torch.device | str = "cpu",
    ) -> Memory:
        """Bytes of all buffers that a balancer with these arguments makes, once, when it is built, so that an
        engine can plan for them; nothing is made here. Beside a CPU the device's buffers are host memory too.

        ``bytes_per_expert``: weights of one expert in one layer, which pass through pinned memory beside a
        device; 0: no weights are lent. ``split``: as in `Config`. ``reads``: they are the
        objective. ``by_word``: weights wait for a ``step_word``.
        """
        return memory_of_rooms(
            shape,
            topology,
            micro_batches=micro_batches,
            bytes_per_expert=bytes_per_expert,
            split=split,
            reads=reads,
            by_word=by_word,
            device=device,
        )

    def statistics(self) -> Statistics:
        """What the balancer has done so far. Never waits."""
        loop, mover = self._loop, self._loop.mover
        state, since_step, since_seconds = loop.watch.state
        imbalance = loop.imbalance
        return Statistics(
            state=state,
            since_step=since_step,
            since_seconds=since_seconds,
            progress_seconds=loop.watch.progress_seconds,
            mode=self._forward.mode,
            steps=self._collector.step,
            gathered_step=self._collector.gathered_step,
            epoch=self._forward.epoch,
            rounds=self._heartbeat.rounds,
            windows=loop.windows,
            plans=loop.plans,
            moves=mover.moves,
            moved_bytes=mover.moved_bytes,
            skipped_snapshots=self._collector.skipped_snapshots,
            failures=loop.watch.failures,
            waits=forward_waits(),
            imbalance=imbalance.overall if imbalance else None,
            imbalance_p50=imbalance.p50 if imbalance else None,
            imbalance_p95=imbalance.p95 if imbalance else None,
            imbalance_worst=imbalance.worst if imbalance else None,
            served=loop.served,
        )

    def close(self, timeout_seconds: float = 30.0) -> None:
        """Ends balancing; the placement stays as it is. Called on every rank; twice is allowed. Waits
        for the other ranks to close, at most ``timeout_seconds``."""
        if self._closed or not self._home.is_here:
            return
        self._closed = True
        deadline = time.monotonic() + timeout_seconds
        if self._heartbeat.close(timeout_seconds):
            self._loop.close()
            self._loop.mover.close(max(deadline - time.monotonic(), 0.0))
        self._loop.desk.close(max(deadline - time.monotonic(), 0.0))
        self._collector.close()
