"""The buffers of heat, put together for what is counted and where it is gathered; and their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isotherm.control import Span, no_span
from isotherm.heat.active import ActiveSteps
from isotherm.heat.aside import DeviceGather, DeviceGroup
from isotherm.heat.exchange import DeviceExchange, Exchange, HostExchange
from isotherm.heat.on_request import OnRequest
from isotherm.heat.received import ReceivedCounts
from isotherm.heat.snapshots import SnapshotRing
from isotherm.heat.totals import Totals, TotalsLayout
from isotherm.placement import Placement
from isotherm.status import Memory
from isotherm.streams import Backend, Stream
from isotherm.topology import MoEShape, Topology

Source = Literal["ids", "received", "mapped"]
"""ids: the experts that this rank's own tokens chose. received: tokens per local slot after dispatch.
mapped: as ids, counted by whoever maps them to slots, and the load of every slot beside."""


@dataclass(frozen=True)
class Asked:
    """What windows are to tell besides heat and loads."""

    active_steps: bool = False
    source_heat: bool = False

    def check(self, source: Source, *, on_device: bool) -> None:
        """Raises ValueError where it is not known."""
        wanted = [name for name in ("active_steps", "source_heat") if getattr(self, name)]
        if wanted and source == "received":
            raise ValueError(
                f"{' and '.join(wanted)} with source='received': counts after dispatch do not tell whose "
                "tokens they are; count ids, or leave it out"
            )
        if wanted and on_device:
            raise ValueError(
                f"{' and '.join(wanted)} with device_group: the device gathers heat and loads alone; leave "
                "device_group out, or what is asked for"
            )


@dataclass(frozen=True, eq=False)
class HeatBuffers:
    """Everything that counts pass through on one rank. ``received`` only where it is the source, ``active``
    where steps are asked for."""

    totals: Totals
    received: ReceivedCounts | None
    active: ActiveSteps | None
    ring: SnapshotRing
    exchange: Exchange


def make_heat_buffers(
    shape: MoEShape,
    topology: Topology,
    source: Source,
    *,
    rank: int,
    placement: Placement,
    micro_batches: int,
    backend: Backend,
    side: Stream | None,
    device_group: DeviceGroup | None,
    asked: Asked = Asked(),
    span: Span = no_span,
) -> HeatBuffers:
    """Makes them all, once. ``side`` is the side stream, None where everything runs on the engine's.

    Raises:
        ValueError: what is ``asked`` for is not known there.
    """
    asked.check(source, on_device=device_group is not None)
    layout = _layout(shape, topology, source, asked)
    own_slots = source == "received"
    has_aside = own_slots and backend.queues_work and side is not None
    totals = Totals(layout, micro_batches, backend.device, aside=has_aside)
    received = ReceivedCounts(totals, topology, rank, placement, backend, side) if own_slots else None
    if device_group is None:
        host_ring = SnapshotRing(totals, backend, span=span)
        on_request = OnRequest(layout, topology, rank, sources=asked.source_heat)
        host_exchange = HostExchange(layout, topology, on_request, own_slots=own_slots)
        active = ActiveSteps(totals) if asked.active_steps else None
        return HeatBuffers(totals, received, active, host_ring, host_exchange)
    gather = DeviceGather(device_group, layout, totals.rows_MW, own_slots=own_slots)
    ring = SnapshotRing(totals, backend, gather=gather, span=span)
    exchange = DeviceExchange(layout, topology, own_slots=own_slots)
    return HeatBuffers(totals, received, None, ring, exchange)


def memory_of_heat(
    shape: MoEShape,
    topology: Topology,
    source: Source,
    *,
    micro_batches: int,
    queues_work: bool,
    inline: bool,
    on_device: bool,
    asked: Asked = Asked(),
) -> Memory:
    """Bytes of what `make_heat_buffers` makes. ``queues_work``: whether the device does; ``inline``: there is
    no side stream; ``on_device``: there is a device group."""
    layout = _layout(shape, topology, source, asked)
    own_slots = source == "received"
    rows = micro_batches + (own_slots and queues_work and not inline)
    row_bytes = landing_bytes = layout.row_bytes(rows)
    memory = Memory(device_bytes=row_bytes)
    if own_slots:
        memory += ReceivedCounts.memory(shape.layers, topology.slots_per_rank, rows)
    if on_device:
        landing_bytes = DeviceGather.landing_bytes(layout, topology.ranks, own_slots=own_slots)
        memory += DeviceGather.memory(layout, topology.ranks, own_slots=own_slots)
        memory += DeviceExchange.memory(layout, topology.ranks, own_slots=own_slots)
    else:
        memory += HostExchange.memory(layout) + ActiveSteps.memory(layout)
        memory += OnRequest.memory(layout, topology, sources=asked.source_heat)
    lands_at_once = not (queues_work or on_device)
    return memory + SnapshotRing.memory(row_bytes, landing_bytes, lands_at_once=lands_at_once)


def _layout(shape: MoEShape, topology: Topology, source: Source, asked: Asked) -> TotalsLayout:
    slots = {"ids": 0, "received": topology.slots_per_rank, "mapped": topology.slots}
    return TotalsLayout(shape, slots[source], asked.active_steps)
