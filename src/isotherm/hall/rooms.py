"""Building: heat, router and what carries weights, put together for one balancer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from isotherm.config import Config, Mode, Split
from isotherm.control import Announcer, Heartbeat, Limits, Link, Meeting, PlanDesk, Span, Watch, check_peers
from isotherm.forward import ForwardPath, StepWord
from isotherm.hall.tables import TableRule, tells_sources
from isotherm.heat import Asked, HeatCollector, HeatGather, memory_of_heat
from isotherm.mover import (
    BUFFERS,
    Carrier,
    CheckedTransport,
    ExpertWeights,
    Fill,
    HostTransport,
    Ledger,
    LocalSlots,
    Mover,
    Staging,
    Transport,
    Weights,
)
from isotherm.placement import Placement, digest
from isotherm.router import Dispatch, Router, RoutingTables, TableShelf
from isotherm.status import Memory
from isotherm.streams import Backend, Stream, backend_for
from isotherm.topology import MoEShape, Topology
from isotherm.window import HeatWindow

MakeTransport: TypeAlias = Callable[[ExpertWeights, Topology, Backend], Transport]
"""Makes what carries the weights."""

OnArrival: TypeAlias = Callable[[int, int], None]
"""Called with the layer, from 0, and the slot of this rank whose weights have arrived."""


@dataclass(frozen=True, eq=False)
class Ways:
    """How tokens are sent and weights travel: what the engine lends besides them. See `Balancer`."""

    dispatch: Dispatch = "sender"
    step_word: StepWord | None = None
    transport: MakeTransport = HostTransport
    on_arrival: OnArrival | None = None

    def check(self, mode: Mode) -> None:
        """Raises ValueError where they do not fit together, or cannot do what ``mode`` asks."""
        if self.dispatch == "replicated" and self.step_word is None and mode in ("shares", "full"):
            raise ValueError(
                f"mode={mode!r} changes tables, and with dispatch='replicated' all ranks must take them up "
                "in the same step: give step_word=, or mode='observe'"
            )
        if self.step_word is not None and self.on_arrival is not None:
            raise ValueError(
                "on_arrival= prepares a slot before it is used, and by step_word= slots are in use until "
                "they change: give one of them"
            )


@dataclass(frozen=True, eq=False)
class Rooms:
    """What a balancer is made of beside its rounds.

    Attributes:
        weights, slots, carrier: this rank's weights, and what moves them; None where the balancer knows none.
        staging: where they wait for the step word; None where slots are retired instead.
        is_movable: weights can move: the engine lent them, and a step word or redundant slots.
    """

    shape: MoEShape
    rule: TableRule
    collector: HeatCollector
    router: Router
    shelf: TableShelf
    forward: ForwardPath
    ways: Ways
    weights: ExpertWeights | None
    slots: LocalSlots | None
    carrier: Carrier | None
    staging: Staging | None
    is_movable: bool

    @property
    def bytes_per_expert(self) -> int:
        """What one move carries; 0 without weights."""
        return 0 if self.weights is None else self.weights.bytes_per_expert

    def publish(self, ledger: Ledger, window: HeatWindow | None) -> None:
        """Leaves the tables of the ledger's epoch, and the weights that wait for them, for the engine's
        thread. On the heartbeat's."""
        if self.staging is not None:
            self.staging.leave(ledger)
        self.shelf.leave(ledger.epoch, self.rule.tables(ledger, window))


def make_rooms(
    shape: MoEShape,
    topology: Topology,
    config: Config,
    start: Ledger,
    weights: Weights | None,
    *,
    rank: int,
    micro_batches: int,
    backend: Backend,
    inline: bool,
    ways: Ways,
    on_carried: Callable[[], None],
    span: Span,
) -> Rooms:
    """Heat counts into the rows that the router maps by; weights are looked at, and not touched.

    Raises:
        ValueError: weights that do not fit, or ways that do not go together.
    """
    ways.check(config.mode)
    collector = HeatCollector(
        shape,
        topology,
        None,
        source="mapped",
        rank=rank,
        window_steps=config.window_steps,
        slices=config.slices,
        micro_batches=micro_batches,
        backend=backend,
        inline=inline,
        active_steps=config.objective == "reads",
        source_heat=tells_sources(config.split, topology),
        span=span,
    )
    rule = TableRule(shape, topology, config.split, ways.dispatch, rank)
    router = Router(
        rule.tables(start),
        rank=rank,
        backend=backend,
        heat_MKLE=collector.totals.heat_MKLE,
        received_MLP=collector.totals.slots_MLP,
        dispatch=ways.dispatch,
    )
    shelf = TableShelf(router, backend)
    if weights is None:
        forward = ForwardPath(collector, router, shelf, backend, config.mode, step_word=ways.step_word)
        return Rooms(shape, rule, collector, router, shelf, forward, ways, None, None, None, None, False)
    experts = ExpertWeights(weights, layers=shape.layers, slots_per_rank=topology.slots_per_rank)
    slots = LocalSlots(weights, experts, topology, rank)
    staging = None if ways.step_word is None else Staging(experts, topology, rank, backend, buffers=BUFFERS)
    take_up = staging.take_up if staging is not None else _nothing
    forward = ForwardPath(
        collector, router, shelf, backend, config.mode, step_word=ways.step_word, take_up=take_up
    )
    carrier = Carrier(
        _make_transport(config, ways, experts, topology, backend),
        host_stream("carrier", inline=inline)(),
        on_end=on_carried,
        on_arrival=_arrivals(ways.on_arrival, topology, rank),
        span=span,
    )
    is_movable = topology.slots > shape.experts or ways.step_word is not None
    return Rooms(
        shape, rule, collector, router, shelf, forward, ways, experts, slots, carrier, staging, is_movable
    )


def _nothing() -> None:
    """No weights wait for tables."""


def _make_transport(
    config: Config, ways: Ways, experts: ExpertWeights, topology: Topology, backend: Backend
) -> Transport:
    transport = ways.transport(experts, topology, backend)
    return CheckedTransport(transport, experts, topology, backend) if config.check_moves else transport


def _arrivals(
    on_arrival: OnArrival | None, topology: Topology, rank: int
) -> Callable[[Sequence[Fill]], None]:
    """Calls it for what arrived on this rank."""

    def tell(fills: Sequence[Fill]) -> None:
        for fill in fills:
            if on_arrival is not None and topology.rank_of(fill.target) == rank:
                on_arrival(fill.layer, fill.target % topology.slots_per_rank)

    return tell


def host_stream(name: str, *, inline: bool) -> Callable[[], Stream]:
    """Makes streams of the host; the caller's own where everything is done in line."""
    host = backend_for("cpu")
    return host.main_stream if inline else lambda: host.side_stream(name)


def tables_of(ledger: Ledger, shape: MoEShape) -> RoutingTables:
    """What a ledger says of routing."""
    return RoutingTables.build(ledger.content, ledger.shares, shape.experts)


def memory_of_rooms(
    shape: MoEShape,
    topology: Topology,
    *,
    micro_batches: int,
    bytes_per_expert: int,
    split: Split,
    reads: bool,
    by_word: bool,
    device: torch.device | str,
) -> Memory:
    """See `Balancer.memory`."""
    heat = memory_of_heat(
        shape,
        topology,
        "mapped",
        micro_batches=micro_batches,
        queues_work=torch.device(device).type != "cpu",
        inline=False,
        on_device=False,
        asked=Asked(active_steps=reads, source_heat=tells_sources(split, topology)),
    )
    words = sum(each.header_words for each in (Watch, HeatGather, PlanDesk, Announcer, Mover, Meeting))
    tables = Router.memory(shape, topology, micro_batches, device=device, levels_batches=split == "batch")
    staging = HostTransport.memory(bytes_per_expert, device=device)
    if by_word:
        staging += Staging.memory(bytes_per_expert, buffers=BUFFERS)
    return heat + tables + staging + Heartbeat.memory(topology.ranks, words)


def check_fit(shape: MoEShape, topology: Topology, link: Link, placement: Placement) -> None:
    """Whether sizes fit together, here.

    Raises:
        ValueError: they do not; the message names them.
    """
    if link.size != topology.ranks:
        raise ValueError(
            f"the group has {link.size} ranks, the topology {topology.ranks}: give a "
            "group of all expert-parallel ranks"
        )
    placement.check_fits(shape, topology)


def check_alike(
    link: Link,
    config: Config,
    rooms: Rooms,
    topology: Topology,
    placement: Placement,
    *,
    inline: bool,
    limits: Limits | None,
) -> None:
    """Whether every rank was given the same. Blocks until every rank has called it.

    Raises:
        PeerMismatchError: on every rank.
    """
    settings = {
        "shape": rooms.shape,
        "topology": topology,
        "placement": digest(placement.slot_to_expert.tobytes()),
        "inline": inline,
        "limits": limits,
        "movable": rooms.is_movable,
        "dispatch": rooms.ways.dispatch,
        "step_word": rooms.ways.step_word is not None,
        "weights": None if rooms.weights is None else rooms.weights.signature,
        **config.as_dict(),
    }
    check_peers(link, settings)


def device_of(weights: Weights | None) -> torch.device:
    """Where the weights lie; the CPU without any."""
    for layer in weights or ():
        for tensors in layer.values():
            return tensors[0].device
    return torch.device("cpu")
