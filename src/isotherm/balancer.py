"""The hall where heat, planner, mover, router and engine meet.

Three threads, each owning what it writes:

- the *engine's* thread begins and ends steps and routes. It counts, takes snapshots, and between two
  steps puts the newest tables in force. It never waits.
- the *heartbeat's* thread makes rounds: it turns snapshots into windows, delivers plans, advances the
  ledger, carries weights, and leaves new tables for the engine's thread to pick up.
- the *planner's* thread, on rank 0 alone, runs the mind on a window and announces its plan.

What passes between them is an immutable object stored in one attribute, or handed over.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

import torch
import torch.distributed as dist

from isotherm import planner, router
from isotherm.arrays import FloatArray, Int64Array
from isotherm.config import MODES, Config, Mode
from isotherm.control import Announcer, GroupLink, Heartbeat, Link, Span, check_peers, no_span
from isotherm.decide import Decision, Past, make_decision
from isotherm.decide import State as Mind
from isotherm.errors import IsothermError
from isotherm.forward import ForwardPath, check_tokens
from isotherm.heat import HeatCollector, HeatGather, memory_of_heat
from isotherm.mover import ExpertWeights, HostTransport, Ledger, Mover, Phase, Rules, Transport, Weights
from isotherm.numbers import Number
from isotherm.placement import Placement, Plan, digest
from isotherm.router import Router, RoutingTables, TableShelf
from isotherm.status import Memory, State, Statistics, TablesInForce
from isotherm.streams import Backend, backend_for, count_wait, forward_path, forward_waits
from isotherm.topology import MoEShape, Topology
from isotherm.window import HeatWindow, overall_imbalance

logger = logging.getLogger("isotherm")


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
        span: opens spans of a timeline.

    Every rank makes the same steps, dummy ones included::

        with balancer.step(num_tokens=n):
            slots = balancer.route(layer, expert_ids)

    Building it blocks until every rank has built its own. Afterwards nothing here makes the engine's
    thread or stream wait. When anything of ours fails the engine goes on with what is published.

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
        self._make_rooms(Ledger.start(placement, placement.even_shares()), weights, transport, micro_batches)
        self._make_state()
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
        self._announcer = Announcer(digest, self._on_plan)
        self._heartbeat = Heartbeat(
            self._link,
            [self._collector.gather, self._announcer, self._mover],
            interval_seconds=self.config.heartbeat_seconds,
            step=lambda: self._collector.step,
            lag_steps=4 * self.config.window_steps,
            span=self._span,
            on_failure=self._on_failure,
        )
        host = backend_for("cpu")
        self._planner = host.main_stream() if self._inline else host.side_stream("planner")

    def _make_state(self) -> None:
        self._planning = False
        self._degraded = False
        self._failures = 0
        self._windows = 0
        self._plans = 0
        self._imbalance: float | None = None
        self._heat_LE: Int64Array | None = None
        self._past = Past()
        self._window_callback: Callable[[HeatWindow], None] | None = None
        self._decision_callback: Callable[[Decision], None] | None = None
        self._scope = _StepScope(self)
        self._closed = False

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
        """
        check_tokens(num_tokens, num_decode_tokens)
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

    def _on_window(self, window: HeatWindow) -> None:
        self._windows += 1
        self._imbalance = overall_imbalance(window.load_LG)
        self._heat_LE = window.heat_LE
        if self._link.rank == 0 and not self._planning:
            self._planning = True
            ledger = self._mover.ledger
            self._planner.submit(lambda: self._plan(window, ledger))
        if self._window_callback is not None:
            self._window_callback(window)

    def _on_plan(self, data: bytes) -> None:
        identity, plan = int.from_bytes(data[:8], "little"), Plan.from_bytes(data[8:])
        self._planning = False
        if identity != self._mover.ledger.identity:
            logger.info("isotherm: a plan was made for slots that have changed since; dropped")
            return
        self._plans += 1
        self._mover.aim(plan.placement, plan.shares)

    def _reshare(self, live: Placement) -> FloatArray:
        """The best shares while slots are retired or empty, for the newest heat: the same on every rank,
        since windows and plans are delivered in the same rounds."""
        if self._heat_LE is None:
            return live.even_shares()
        return planner.balanced_shares(self._heat_LE, live, self.topology)

    def _publish(self, ledger: Ledger) -> None:
        self._shelf.leave(ledger.epoch, self._tables_of(ledger))

    def _on_failure(self, error: BaseException) -> None:
        self._degraded = True
        self._failures += 1

    # -- the planner's thread ------------------------------------------------------------------------

    def _plan(self, window: HeatWindow, ledger: Ledger) -> None:
        """Runs the mind and announces its plan. A failure is logged, and the next window tried."""
        try:
            with self._span("plan", "planner"):
                mind, decision = make_decision(self._mind(ledger), window, self._collector.step)
                self._past = mind.past
        except (IsothermError, ValueError, ArithmeticError, LookupError, TypeError):
            logger.exception("isotherm: planning failed; serving what is published")
            self._failures += 1
            self._planning = False
            return
        if self._decision_callback is not None:
            self._decision_callback(decision)
        if decision.plan is None or self._forward.mode not in ("shares", "full"):
            logger.debug("isotherm: step %d: %s", decision.step, decision.reason)
            self._planning = False
            return
        logger.info("isotherm: step %d: %s", decision.step, decision.reason)
        self._announcer.announce(ledger.identity.to_bytes(8, "little") + decision.plan.to_bytes())
        self._heartbeat.poke()

    def _mind(self, ledger: Ledger) -> Mind:
        return Mind(
            topology=self.topology,
            config=replace(self.config, mode=self._forward.mode),
            placement=ledger.placement,
            shares=ledger.shares,
            settled=ledger.phase is Phase.SETTLED,
            movable=self._movable,
            bytes_per_expert=self._bytes_per_expert,
            past=self._past,
        )

    # -- anyone ---------------------------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What the balancer is doing."""
        if self._degraded:
            return State.DEGRADED
        if self._mover.ledger.phase is not Phase.SETTLED:
            return State.MOVING
        return State.PLANNING if self._planning else State.OBSERVING

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

    def on_window(self, callback: Callable[[HeatWindow], None]) -> None:
        """Calls ``callback`` with each window, on every rank, off the engine's thread."""
        self._window_callback = callback

    def on_decision(self, callback: Callable[[Decision], None]) -> None:
        """Calls ``callback`` with each decision, on rank 0, on the planner's thread."""
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
        words = HeatGather.header_words + Announcer.header_words + Mover.header_words
        tables = Router.memory(shape, topology, micro_batches, device=device)
        return heat + tables + Heartbeat.memory(topology.ranks, words)

    def statistics(self) -> Statistics:
        """What the balancer has done so far. Never waits."""
        return Statistics(
            state=self.state,
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
            failures=self._failures,
            waits=forward_waits(),
            imbalance=self._imbalance,
        )

    def close(self, timeout_seconds: float = 30.0) -> None:
        """Ends balancing; the placement stays as it is. Called on every rank; twice is allowed. Waits
        for the other ranks to close, at most ``timeout_seconds``."""
        if self._closed:
            return
        self._closed = True
        if self._heartbeat.close(timeout_seconds):
            self._mover.close()
        if not self._inline:
            self._planner.close()
        self._collector.close()

    # -- building -------------------------------------------------------------------------------------

    def _make_mover(
        self,
        start: Ledger,
        weights: Weights | None,
        make_transport: Callable[[ExpertWeights, Topology, Backend], Transport],
    ) -> Mover:
        transport: Transport | None = None
        bytes_per_expert = 0
        if weights is not None:
            experts = ExpertWeights(
                weights, layers=self.shape.layers, slots_per_rank=self.topology.slots_per_rank
            )
            bytes_per_expert = experts.bytes_per_expert
            transport = make_transport(experts, self.topology, self._backend)
        self._bytes_per_expert = bytes_per_expert
        self._movable = transport is not None and self.topology.slots > self.shape.experts
        return Mover(
            start,
            Rules(self.topology, self.config.moves_in_flight, self._reshare),
            transport,
            bytes_per_expert=bytes_per_expert,
            bytes_per_step=self.config.move_bytes_per_step,
            finished=self._forward.finished,
            publish=self._publish,
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
