"""The buffers of heat, put together for what is counted and where it is gathered; and their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isotherm.control import Span, no_span
from isotherm.heat.aside import DeviceGather, DeviceGroup
from isotherm.heat.exchange import DeviceExchange, Exchange, HostExchange
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


@dataclass(frozen=True, eq=False)
class HeatBuffers:
    """Everything that counts pass through on one rank. ``received`` only where it is the source."""

    totals: Totals
    received: ReceivedCounts | None
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
    span: Span = no_span,
) -> HeatBuffers:
    """Makes them all, once. ``side`` is the side stream, None where everything runs on the engine's."""
    layout = _layout(shape, topology, source)
    own_slots = source == "received"
    has_aside = own_slots and backend.queues_work and side is not None
    totals = Totals(layout, micro_batches, backend.device, aside=has_aside)
    received = ReceivedCounts(totals, topology, rank, placement, backend, side) if own_slots else None
    if device_group is None:
        host_ring = SnapshotRing(totals, backend, span=span)
        return HeatBuffers(totals, received, host_ring, HostExchange(layout, topology, own_slots=own_slots))
    gather = DeviceGather(device_group, layout, totals.rows_MW, own_slots=own_slots)
    ring = SnapshotRing(totals, backend, gather=gather, span=span)
    return HeatBuffers(totals, received, ring, DeviceExchange(layout, topology, own_slots=own_slots))


def memory_of_heat(
    shape: MoEShape,
    topology: Topology,
    source: Source,
    *,
    micro_batches: int,
    queues_work: bool,
    inline: bool,
    on_device: bool,
) -> Memory:
    """Bytes of what `make_heat_buffers` makes. ``queues_work``: whether the device does; ``inline``: there is
    no side stream; ``on_device``: there is a device group."""
    layout = _layout(shape, topology, source)
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
        memory += HostExchange.memory(layout)
    lands_at_once = not (queues_work or on_device)
    return memory + SnapshotRing.memory(row_bytes, landing_bytes, lands_at_once=lands_at_once)


def _layout(shape: MoEShape, topology: Topology, source: Source) -> TotalsLayout:
    slots = {"ids": 0, "received": topology.slots_per_rank, "mapped": topology.slots}
    return TotalsLayout(shape, slots[source])
