"""Building: heat, router and what carries weights, put together for one balancer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

from isotherm.config import Config
from isotherm.control import Announcer, Heartbeat, Link, Meeting, PlanDesk, Span, Watch, check_peers
from isotherm.forward import ForwardPath
from isotherm.heat import HeatCollector, HeatGather, memory_of_heat
from isotherm.mover import (
    Carrier,
    ExpertWeights,
    HostTransport,
    Ledger,
    LocalSlots,
    Mover,
    Transport,
    Weights,
)
from isotherm.placement import Placement, digest
from isotherm.router import Router, RoutingTables, TableShelf
from isotherm.status import Memory
from isotherm.streams import Backend, Stream, backend_for
from isotherm.topology import MoEShape, Topology

MakeTransport: TypeAlias = Callable[[ExpertWeights, Topology, Backend], Transport]
"""Makes what carries the weights."""


@dataclass(frozen=True, eq=False)
class Rooms:
    """What a balancer is made of beside its rounds.

    Attributes:
        slots, carrier: this rank's weights, and what moves them; None where the balancer knows no weights.
        bytes_per_expert: what one move carries; 0 without weights.
        is_movable: weights can move: the engine lent them, and layers have redundant slots.
    """

    shape: MoEShape
    collector: HeatCollector
    router: Router
    shelf: TableShelf
    forward: ForwardPath
    slots: LocalSlots | None
    carrier: Carrier | None
    bytes_per_expert: int
    is_movable: bool

    def publish(self, ledger: Ledger) -> None:
        """Leaves the tables of the ledger's epoch for the engine's thread. On the heartbeat's."""
        self.shelf.leave(ledger.epoch, tables_of(ledger, self.shape))


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
    transport: MakeTransport,
    on_carried: Callable[[], None],
    span: Span,
) -> Rooms:
    """Heat counts into the rows that the router maps by; weights are looked at, and not touched.

    Raises:
        ValueError: weights that do not fit.
    """
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
        span=span,
    )
    router = Router(
        tables_of(start, shape),
        rank=rank,
        backend=backend,
        heat_MKLE=collector.totals.heat_MKLE,
        received_MLP=collector.totals.slots_MLP,
    )
    shelf = TableShelf(router, backend)
    forward = ForwardPath(collector, router, shelf, backend, config.mode)
    if weights is None:
        return Rooms(shape, collector, router, shelf, forward, None, None, 0, False)
    experts = ExpertWeights(weights, layers=shape.layers, slots_per_rank=topology.slots_per_rank)
    slots = LocalSlots(weights, experts, topology, rank)
    stream = host_stream("carrier", inline=inline)
    carrier = Carrier(transport(experts, topology, backend), stream(), on_end=on_carried)
    is_movable = topology.slots > shape.experts
    return Rooms(
        shape, collector, router, shelf, forward, slots, carrier, experts.bytes_per_expert, is_movable
    )


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
    )
    words = sum(each.header_words for each in (Watch, HeatGather, PlanDesk, Announcer, Mover, Meeting))
    tables = Router.memory(shape, topology, micro_batches, device=device)
    staging = HostTransport.memory(bytes_per_expert, device=device)
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
    link: Link, config: Config, rooms: Rooms, topology: Topology, placement: Placement, *, inline: bool
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
        "movable": rooms.is_movable,
        **config.as_dict(),
    }
    check_peers(link, settings)


def device_of(weights: Weights | None) -> torch.device:
    """Where the weights lie; the CPU without any."""
    for layer in weights or ():
        for tensors in layer.values():
            return tensors[0].device
    return torch.device("cpu")
