"""The hall where heat, planner, mover, router and engine meet.

Four threads, each owning what it writes:

- the *engine's* thread begins and ends steps and routes. It counts, takes snapshots, and between two
  steps puts the newest tables in force. It never waits.
- the *heartbeat's* thread makes rounds: it turns snapshots into windows, delivers plans, advances the
  ledger, keeps the state, and leaves new tables for the engine's thread to pick up.
- the *planner's* thread, on rank 0 alone, runs the mind on a window.
- the *carrier's* thread carries weights into dead slots.

What passes between them is an immutable object stored in one attribute, or handed over.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
import torch.distributed as dist

from isotherm import planner, router
from isotherm.arrays import FloatArray, Int64Array
from isotherm.config import MODES, Config, Mode
from isotherm.control import (
    Announcer,
    GroupLink,
    Heartbeat,
    Limits,
    Link,
    Meeting,
    PlanDesk,
    PlanLog,
    Promise,
    Seen,
    Span,
    Watch,
    check_peers,
    no_span,
)
from isotherm.decide import Decision, make_decision
from isotherm.decide import State as Mind
from isotherm.errors import IsothermError
from isotherm.forward import ForwardPath, check_tokens
from isotherm.heat import HeatCollector, HeatGather, memory_of_heat
from isotherm.mover import (
    Carrier,
    ExpertWeights,
    HostTransport,
    Ledger,
    LocalSlots,
    Mover,
    Phase,
    Rules,
    Tensors,
    Transport,
    Unequal,
    Weights,
    find_unequal,
    write_held,
)
from isotherm.numbers import Number
from isotherm.placement import Placement, Plan, digest
from isotherm.planner.outlook.past import Past
from isotherm.router import Router, RoutingTables, TableShelf
from isotherm.status import Memory, State, Statistics, TablesInForce
from isotherm.streams import Backend, Stream, backend_for, count_wait, forward_path, forward_waits
from isotherm.topology import MoEShape, Topology
from isotherm.window import HeatWindow, ImbalanceSummary

logger = logging.getLogger("isotherm")

_HOLD, _REFILL, _RELEASE, _COMPARE = range(1, 5)
"""What the engine's threads of all ranks meet for."""


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
        transport: makes what carries the weights.
        limits: deadlines, and the pause after a failure; None: those that fit the window.
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
        transport: Callable[[ExpertWeights, Topology, Backend], Transport] = HostTransport,
        limits: Limits | None = None,
        span: Span = no_span,
    ) -> None:
        topology.check_holds(shape.experts)
        self.shape, self.topology = shape, topology
        self.config = config or Config()
        self._inline, self._span = inline, span
        self._link: Link = GroupLink(group) if isinstance(group, dist.ProcessGroup) else group
        placement = placement or Placement.default(shape, topology)
        self._check_fit(placement)
        planner.get_policy(self.config.policy)
        self._backend = backend or backend_for(device or _device_of(weights))
        self._make_state()
        start = Ledger.start(placement, placement.even_shares())
        self._make_rooms(start, weights, transport, micro_batches)
        self._make_control(limits)
        router.warm_up()
        planner.warm_up()
        self._check_peers(placement)
        if not inline:
            self._heartbeat.start()

    def _make_rooms(
        self,
        start: Ledger,
        weights: Weights | None,
        transport: Callable[[ExpertWeights, Topology, Backend], Transport],
        micro_batches: int,
    ) -> None:
        self._collector = HeatCollector(
            self.shape,
            self.topology,
            None,
            source="mapped",
            rank=self._link.rank,
            window_steps=self.config.window_steps,
            slices=self.config.slices,
            micro_batches=micro_batches,
            backend=self._backend,
            inline=self._inline,
            span=self._span,
        )
        self._collector.on_window(self._on_window)
        self._router = Router(
            self._tables_of(start),
            rank=self._link.rank,
            backend=self._backend,
            heat_MKLE=self._collector.totals.heat_MKLE,
            received_MLP=self._collector.totals.slots_MLP,
        )
        self._shelf = TableShelf(self._router, self._backend)
        self._forward = ForwardPath(
            self._collector, self._router, self._shelf, self._backend, self.config.mode
        )
        self._mover = self._make_mover(start, weights, transport)

    def _make_control(self, limits: Limits | None) -> None:
        steps_per_move = -(-self._bytes_per_expert // self.config.move_bytes_per_step)
        self._watch = Watch(
            limits or Limits.of_window(self.config.window_steps, steps_per_move=steps_per_move),
            rank=self._link.rank,
            step=lambda: self._collector.step,
            call_off=self._call_off,
            on_round=self._on_round,
        )
        self._announcer = Announcer(digest, self._on_plan, self._on_refusal)
        self._desk = PlanDesk(
            self._host_stream("planner"),
            self._take_decision,
            announce=self._announcer.announce,
            on_begun=lambda: self._watch.see(Seen.PLANNING),
            on_ended=lambda: self._watch.see(Seen.DECIDED),
            on_failed=lambda: self._watch.fail("planner_raised", "rank 0 could not plan"),
            poke=lambda: self._heartbeat.poke(),
        )
        self._meeting = Meeting(is_ready=self._may_meet, on_met=self._on_met)
        self._heartbeat = Heartbeat(
            self._link,
            [self._watch, self._collector.gather, self._desk, self._announcer, self._mover, self._meeting],
            interval_seconds=self.config.heartbeat_seconds,
            step=lambda: self._collector.step,
            lag_steps=4 * self.config.window_steps,
            span=self._span,
            on_failure=lambda name, error: self._watch.fail("room_failed", f"{name}: {error}"),
            on_lost=lambda error: self._watch.lose(),
        )

    def _host_stream(self, name: str) -> Callable[[], Stream]:
        """Makes streams of the host; the caller's own where everything is done in line."""
        host = backend_for("cpu")
        return host.main_stream if self._inline else lambda: host.side_stream(name)

    def _make_state(self) -> None:
        self._windows = 0
        self._plans = 0
        self._imbalance: ImbalanceSummary | None = None
        self._window: HeatWindow | None = None
        self._heat_LE: Int64Array | None = None
        self._is_asked_for = False
        self._is_held = False  # slots are refilled: nothing may move, on any rank
        self._plan_log = PlanLog()
        self._past = Past()
        self._window_callback: Callable[[HeatWindow], None] | None = None
        self._decision_callback: Callable[[Decision], None] | None = None
        self._scope = _StepScope(self)
        self._closed = False
        self._process = os.getpid()

    # -- the engine's thread -------------------------------------------------------------------------

    def step(self, num_tokens: Number, *, num_decode_tokens: Number = 0) -> _StepScope:
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
        if os.getpid() != self._process:
            raise IsothermError(
                f"this balancer was built in process {self._process}, and this is a copy of it: threads do "
                "not survive a fork; build the balancer in the process that serves, or start that by spawn"
            )
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

    # -- the heartbeat's thread ----------------------------------------------------------------------

    def _on_round(self) -> None:
        """Plans at once where somebody asked for it, degraded or not."""
        window = self._window
        if self._is_asked_for and window is not None and self._watch.life.state is not State.MOVING:
            self._is_asked_for = False
            self._begin_planning(window)

    def _on_window(self, window: HeatWindow) -> None:
        self._windows += 1
        self._imbalance = ImbalanceSummary.of(window.load_LG, window.layer_ids)
        self._plan_log.see_window(window.start_step, window.end_step, self._imbalance.overall)
        self._window = window
        self._heat_LE = window.heat_LE
        self._watch.note_progress()
        if self._watch.life.state is State.OBSERVING:
            self._begin_planning(window)
        if self._window_callback is not None:
            self._window_callback(window)

    def _begin_planning(self, window: HeatWindow) -> None:
        if self._link.rank != 0 or self._is_held or not self._desk.is_free:
            return
        ledger = self._mover.ledger
        self._desk.begin(lambda: self._plan(window, ledger))

    def _take_decision(self, made: tuple[Mind, Decision, Ledger]) -> bytes | None:
        """What an attempt that was not called off decided, on rank 0: the plan to announce, or None."""
        mind, decision, ledger = made
        self._past = mind.past
        if self._decision_callback is not None:
            self._decision_callback(decision)
        logger.debug("isotherm: step %d: %s", decision.step, decision.reason)
        if decision.plan is None or self._forward.mode not in ("shares", "full"):
            return None
        plan = decision.plan
        self._plan_log.announce(
            Promise(
                decision.step,
                before=decision.imbalance,
                promised=decision.predicted,
                moves=len(plan.moves),
                moved_bytes=len(plan.moves) * self._bytes_per_expert,
                reason=decision.reason,
            )
        )
        return ledger.identity.to_bytes(8, "little") + plan.to_bytes()

    def _on_plan(self, data: bytes) -> None:
        identity, plan = int.from_bytes(data[:8], "little"), Plan.from_bytes(data[8:])
        if identity != self._mover.ledger.identity or (plan.moves and not self._mover.is_clear):
            logger.info("isotherm: a plan was made for slots that have changed since; dropped")
            self._plan_log.call_off()
            self._watch.see(Seen.DECIDED)
            return
        try:
            self._mover.aim(plan.placement, plan.shares)
        except ValueError as error:  # on every rank alike
            self._watch.fail("plan_refused", str(error))
            return
        self._plans += 1
        moves = self._mover.ledger.phase is not Phase.SETTLED
        self._watch.see(Seen.AIMED if moves else Seen.DECIDED)
        self._plan_log.accept(self._collector.step, is_settled=not moves)

    def _on_refusal(self, ranks: tuple[int, ...]) -> None:
        named = ", ".join(map(str, ranks))
        self._watch.fail("plan_refused", f"rank {named} received another plan than rank 0 announced")

    def _on_move(self, seen: Seen) -> None:
        self._watch.see(seen)
        if seen is Seen.SETTLED:
            self._plan_log.settle(self._collector.step)

    def _may_meet(self, kind: int) -> bool:
        """To refill, weights on their way must have arrived, or have been given up."""
        return kind != _REFILL or (self._mover.ledger.phase is Phase.SETTLED and self._mover.is_clear)

    def _on_met(self, kind: int) -> None:
        if kind == _HOLD:
            self._is_held = True
            self._call_off()
            if self._watch.life.state in (State.PLANNING, State.MOVING):
                self._watch.see(Seen.GIVEN_UP)
        elif kind == _RELEASE:
            self._is_held = False

    def _meet(self, kind: int, words_W: Int64Array, deadline: float) -> Int64Array:
        drive = self._heartbeat.beat if self._inline else self._heartbeat.poke
        return self._meeting.meet(kind, words_W, drive, max(deadline - time.monotonic(), 0.0))

    def _call_off(self) -> None:
        """Gives up whatever is under way: what is published stays, and the next plan starts from what is."""
        self._desk.call_off()
        self._announcer.call_off()
        self._mover.call_off()
        self._plan_log.call_off()

    def _reshare(self, live: Placement) -> FloatArray:
        """The best shares while slots are retired or empty, for the newest heat: the same on every rank,
        since windows and plans are delivered in the same rounds."""
        if self._heat_LE is None:
            return live.even_shares()
        return planner.balanced_shares(self._heat_LE, live, self.topology)

    def _publish(self, ledger: Ledger) -> None:
        self._shelf.leave(ledger.epoch, self._tables_of(ledger))

    # -- the planner's thread ------------------------------------------------------------------------

    def _plan(self, window: HeatWindow, ledger: Ledger) -> tuple[Mind, Decision, Ledger]:
        """Runs the mind. Changes nothing: what it returns may be discarded."""
        with self._span("plan", "planner"):
            mind, decision = make_decision(self._mind(ledger), window, self._collector.step)
        return mind, decision, ledger

    def _mind(self, ledger: Ledger) -> Mind:
        return Mind(
            topology=self.topology,
            config=replace(self.config, mode=self._forward.mode),
            placement=ledger.placement,
            shares=ledger.shares,
            settled=ledger.phase is Phase.SETTLED,
            movable=self._movable and self._mover.is_clear,
            bytes_per_expert=self._bytes_per_expert,
            past=self._past,
        )

    # -- anyone ---------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What the balancer is doing."""
        return self._watch.state[0]

    @property
    def tables_in_force(self) -> tuple[TablesInForce, ...]:
        """Which tables this rank routes by, and since which step: the newest changes, oldest first."""
        return tuple(self._forward.tables_in_force)

    @property
    def placement(self) -> Placement:
        """What the slots hold now; dead ones are empty."""
        return self._mover.ledger.placement

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
        self._forward.mode = mode

    def rebalance(self) -> None:
        """Plans on the newest window now, instead of at the end of the next; after a failure too, without
        waiting for its pause to end. Whether weights move is still the mind's to decide. Call it on every
        rank, or on rank 0. Never waits."""
        self._is_asked_for = True
        self._heartbeat.poke()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes what the slots hold now, for `isotherm.read_placement` and ``placement=`` of the next start;
        the same on every rank. The file appears whole, or stays as it was. Slots that are being filled are
        empty in it."""
        write_held(Path(path), self.placement, self.shape.ids, self.topology.ranks)

    def logical_state(self) -> list[dict[int, Tensors]]:
        """For each layer, the tensors of every expert that has a live slot on this rank, by name: views,
        right until this rank begins another step. Between steps. Every expert is on some rank.

        Raises:
            ValueError: the balancer was built without weights.
        """
        return self._slots().logical_state(self._mover.ledger)

    def reload(self, source: Mapping[tuple[int, int], Tensors], timeout_seconds: float = 60.0) -> None:
        """Refills every slot of this rank: ``source[layer, expert]`` has the tensors of an expert by name,
        and is asked for what the slots here hold. Between steps, on every rank; not on the forward path.

        Waits until every rank has come, gives up moves that are under way, and lets nothing move until every
        rank has refilled its slots: no old weights are carried into a new slot.

        Raises:
            LinkError: not every rank made this call in time. Nothing moves until all have.
            ValueError: the balancer was built without weights, or tensors of other names.
        """
        slots, deadline, nothing = self._slots(), time.monotonic() + timeout_seconds, np.zeros(0, np.int64)
        self._meet(_HOLD, nothing, deadline)
        self._meet(_REFILL, nothing, deadline)
        slots.refill(self._mover.ledger, source)
        self._meet(_RELEASE, nothing, deadline)

    def check_replicas(self, timeout_seconds: float = 60.0) -> tuple[Unequal, ...]:
        """Compares the bytes of all live replicas over all ranks, by checksums: those that differ from the
        first replica of their expert, the same on every rank. Between steps, on every rank; not on the
        forward path.

        Raises:
            LinkError: not every rank made this call in time.
            ValueError: the balancer was built without weights.
        """
        checksums_W = self._slots().checksums(self._mover.ledger)
        gathered_GW = self._meet(_COMPARE, checksums_W, time.monotonic() + timeout_seconds)
        return find_unequal(gathered_GW, self.shape.layers)

    def _slots(self) -> LocalSlots:
        if self._local_slots is None:
            raise ValueError("the balancer was built with weights=None: it knows no weights")
        return self._local_slots

    def on_window(self, callback: Callable[[HeatWindow], None]) -> None:
        """Calls ``callback`` with each window, on every rank, off the engine's thread."""
        self._window_callback = callback

    def on_decision(self, callback: Callable[[Decision], None]) -> None:
        """Calls ``callback`` with each decision, on rank 0, off the engine's thread."""
        self._decision_callback = callback

    @staticmethod
    def memory(
        shape: MoEShape,
        topology: Topology,
        *,
        micro_batches: int = 1,
        device: torch.device | str = "cpu",
    ) -> Memory:
        """Bytes of all buffers for heat and tables that a balancer with these arguments makes, once, when
        it is built, so that an engine can plan for them; nothing is made here. Beside a CPU the device's
        buffers are host memory too."""
        heat = memory_of_heat(
            shape,
            topology,
            "mapped",
            micro_batches=micro_batches,
            queues_work=torch.device(device).type != "cpu",
            inline=False,
            on_device=False,
        )
        words = sum(each.header_words for each in (Watch, HeatGather, PlanDesk, Announcer, Mover, Meeting))
        tables = Router.memory(shape, topology, micro_batches, device=device)
        return heat + tables + Heartbeat.memory(topology.ranks, words)

    def statistics(self) -> Statistics:
        """What the balancer has done so far. Never waits."""
        state, since_step, since_seconds = self._watch.state
        imbalance = self._imbalance
        return Statistics(
            state=state,
            since_step=since_step,
            since_seconds=since_seconds,
            progress_seconds=self._watch.progress_seconds,
            mode=self._forward.mode,
            steps=self._collector.step,
            gathered_step=self._collector.gathered_step,
            epoch=self._forward.epoch,
            rounds=self._heartbeat.rounds,
            windows=self._windows,
            plans=self._plans,
            moves=self._mover.moves,
            moved_bytes=self._mover.moved_bytes,
            skipped_snapshots=self._collector.skipped_snapshots,
            failures=self._watch.failures,
            waits=forward_waits(),
            imbalance=imbalance.overall if imbalance else None,
            imbalance_p50=imbalance.p50 if imbalance else None,
            imbalance_p95=imbalance.p95 if imbalance else None,
            imbalance_worst=imbalance.worst if imbalance else None,
        )

    def close(self, timeout_seconds: float = 30.0) -> None:
        """Ends balancing; the placement stays as it is. Called on every rank; twice is allowed. Waits
        for the other ranks to close, at most ``timeout_seconds``."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        deadline = time.monotonic() + timeout_seconds
        if self._heartbeat.close(timeout_seconds):
            self._mover.close(max(deadline - time.monotonic(), 0.0))
        self._desk.close(max(deadline - time.monotonic(), 0.0))
        self._collector.close()

    # -- building -------------------------------------------------------------------------------------

    def _make_mover(
        self,
        start: Ledger,
        weights: Weights | None,
        make_transport: Callable[[ExpertWeights, Topology, Backend], Transport],
    ) -> Mover:
        carrier: Carrier | None = None
        self._local_slots: LocalSlots | None = None
        bytes_per_expert = 0
        if weights is not None:
            experts = ExpertWeights(
                weights, layers=self.shape.layers, slots_per_rank=self.topology.slots_per_rank
            )
            bytes_per_expert = experts.bytes_per_expert
            self._local_slots = LocalSlots(weights, experts, self.topology, self._link.rank)
            carrier = Carrier(
                make_transport(experts, self.topology, self._backend),
                self._host_stream("carrier")(),
                on_end=lambda: self._heartbeat.poke(),
            )
        self._bytes_per_expert = bytes_per_expert
        self._movable = carrier is not None and self.topology.slots > self.shape.experts
        return Mover(
            start,
            Rules(self.topology, self.config.moves_in_flight, self._reshare),
            carrier,
            bytes_per_expert=bytes_per_expert,
            bytes_per_step=self.config.move_bytes_per_step,
            finished=self._forward.finished,
            publish=self._publish,
            see=self._on_move,
            fail=lambda message: self._watch.fail("transfer_failed", message),
            span=self._span,
        )

    def _tables_of(self, ledger: Ledger) -> RoutingTables:
        return RoutingTables.build(ledger.content, ledger.shares, self.shape.experts)

    def _check_fit(self, placement: Placement) -> None:
        if self._link.size != self.topology.ranks:
            raise ValueError(
                f"the group has {self._link.size} ranks, the topology {self.topology.ranks}: give a "
                "group of all expert-parallel ranks"
            )
        placement.check_fits(self.shape, self.topology)

    def _check_peers(self, placement: Placement) -> None:
        check_peers(
            self._link,
            {
                "shape": self.shape,
                "topology": self.topology,
                "placement": digest(placement.slot_to_expert.tobytes()),
                "inline": self._inline,
                "movable": self._movable,
                **self.config.as_dict(),
            },
        )


class _StepScope:
    """What ``with balancer.step(...)`` enters: made once."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self.tokens: tuple[Number, Number] = (0, 0)

    def __enter__(self) -> None:
        num_tokens, num_decode_tokens = self.tokens
        self._balancer.begin_step(num_tokens, num_decode_tokens=num_decode_tokens)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A step that raised ends too: the ranks' step numbers must not part.
        self._balancer.end_step()


def _device_of(weights: Weights | None) -> torch.device:
    for layer in weights or ():
        for tensors in layer.values():
            return tensors[0].device
    return torch.device("cpu")
