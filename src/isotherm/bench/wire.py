"""Bytes that a rank hands over for a window of heat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.distributed as dist

from isotherm.balancer import Balancer
from isotherm.bench.echo import EchoLink
from isotherm.bench.engine import EP2
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.traffic import EP32, SHAPE
from isotherm.config import Config
from isotherm.control import GroupLink, Link
from isotherm.heat import HeatCollector
from isotherm.topology import Topology
from isotherm.window import KINDS

SLICES = 2
LIMIT_BYTES = 4 * SHAPE.layers * SHAPE.experts * len(KINDS) * SLICES + 16 * 2**10
"""Four bytes for each count of the heat, per kind and slice, and 16 KB."""

_GROUPS = {8: 32, 16: 32, 32: 32, 64: 64, 128: 128, 256: 256, 320: 64}
"""Ranks, and redundant slots that divide over them."""

_STEPS_PER_SLICE = 2
_NOTE = (
    "Payload that a rank hands to its calls from one window to the next (Link.sent_bytes), 2 kinds and 2 "
    "slices, in as many rounds as slices; rounds that find nothing to do come by the clock, and each adds "
    "'an idle round'. EP2 is two processes, with 144 slots a rank; larger groups are one rank of the real "
    "code whose peers echo it. received: heat, and the loads of the rank's own slots. mapped (Balancer): "
    "heat, and the loads of all slots, four bytes each, once a window."
)


@dataclass(frozen=True)
class WireBytes:
    """What a rank hands over: ``window`` with one round for each slice, ``idle_round`` beside."""

    window: int
    idle_round: int


def measure_wire_on_ranks() -> WireBytes:
    """What one of two real ranks hands over. Called on every rank."""
    return collector_bytes(GroupLink(dist.new_group(backend="gloo")), EP2)


def measure_wire(on_ranks: WireBytes) -> Section:
    """``on_ranks`` was measured on two; larger groups are found here."""
    received = {
        ranks: collector_bytes(
            EchoLink(ranks), Topology.for_model(experts=SHAPE.experts, redundant=redundant, ranks=ranks)
        )
        for ranks, redundant in _GROUPS.items()
    }
    mapped = _of_balancer(EchoLink(EP32.ranks), EP32)
    figures = _figures("EP2, over gloo", "received", on_ranks)
    for ranks, wire in received.items():
        figures += _figures(f"EP{ranks}", "received", wire)
    figures += _figures("EP32", "mapped", mapped)
    most = max(wire.window for wire in received.values())
    targets = (
        Target("bytes a window, received, the most of EP8 to EP320", most, LIMIT_BYTES),
        Target("bytes a window, received, EP2", on_ranks.window, LIMIT_BYTES),
        Target("bytes a window, mapped, EP32", mapped.window, LIMIT_BYTES),
    )
    return Section("Bytes that a rank hands over", _NOTE, tuple(figures), targets)


def _figures(row: str, source: str, wire: WireBytes) -> list[Figure]:
    return [
        Figure.exact(row, f"{source}, a window", "B", wire.window),
        Figure.exact(row, f"{source}, an idle round", "B", wire.idle_round),
    ]


def collector_bytes(link: Link, topology: Topology) -> WireBytes:
    """What a rank of ``link`` hands over that collects what its slots receive. Called on every rank."""
    collector = HeatCollector(
        SHAPE,
        topology,
        link,
        source="received",
        window_steps=SLICES * _STEPS_PER_SLICE,
        slices=SLICES,
        inline=True,
    )
    wire = _measure(link, lambda: collector.end_step(num_tokens=0))
    collector.close()
    return wire


def _of_balancer(link: Link, topology: Topology) -> WireBytes:
    config = Config(mode="observe", window_steps=SLICES * _STEPS_PER_SLICE, slices=SLICES)
    balancer = Balancer(SHAPE, topology, group=link, weights=None, config=config, inline=True)

    def make_step() -> None:
        with balancer.step(0):
            pass

    wire = _measure(link, make_step)
    balancer.close()
    return wire


def _measure(link: Link, make_step: Callable[[], None]) -> WireBytes:
    """``make_step`` makes a step and a round. The first step of each slice takes no snapshot, so its round
    has nothing to do."""
    sent = [link.sent_bytes]
    for _ in range(SLICES * _STEPS_PER_SLICE):
        make_step()
        sent.append(link.sent_bytes)
    idle_round = sent[1] - sent[0]
    return WireBytes(sent[-1] - sent[0] - (_STEPS_PER_SLICE - 1) * SLICES * idle_round, idle_round)
