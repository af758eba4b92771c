"""What one rank has to do of fills that are carried together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from isotherm.control import Transfer
from isotherm.mover.schedule import Fill
from isotherm.mover.weights import Bits, ExpertWeights, as_bytes
from isotherm.topology import Topology

Copy: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""From, to."""

Places: TypeAlias = Callable[[int, Bits, int], Bits]
"""(layer, views, number of the fill) -> memory that transfers can send from or receive into: the views
themselves where that is possible."""


@dataclass
class Parts:
    """Copies before the transfers (``leaving``), transfers, copies after them (``arriving``), and how many
    experts arrive."""

    leaving: list[Copy] = field(default_factory=list)
    sends: list[Transfer] = field(default_factory=list)
    receives: list[Transfer] = field(default_factory=list)
    arriving: list[Copy] = field(default_factory=list)
    experts: int = 0


def parts_of(
    fills: Sequence[Fill], own: int, weights: ExpertWeights, topology: Topology, places: Places
) -> Parts:
    """What rank ``own`` does of ``fills``. Tags are unique within them, and the same on both ranks."""
    parts = Parts()
    for number, fill in enumerate(fills):
        source, target = topology.rank_of(fill.source), topology.rank_of(fill.target)
        if own not in (source, target):
            continue
        parts.experts += own == target
        if source == target:
            parts.leaving += zip(weights.source(fill), weights.target(fill), strict=True)
            continue
        views = weights.source(fill) if own == source else weights.target(fill)
        hosts = places(fill.layer, views, number)
        peer = target if own == source else source
        first = number * weights.tensors
        transfers = [Transfer(as_bytes(host), peer, first + tensor) for tensor, host in enumerate(hosts)]
        if own == source:
            parts.leaving += _different(views, hosts)
            parts.sends += transfers
        else:
            parts.receives += transfers
            parts.arriving += _different(hosts, views)
    return parts


def copy_all(pairs: Sequence[Copy]) -> None:
    """Enqueues copies on the current stream."""
    for source, target in pairs:
        target.copy_(source, non_blocking=True)


def _different(sources: Bits, targets: Bits) -> list[Copy]:
    """What has to be copied: the rest is one and the same."""
    return [pair for pair in zip(sources, targets, strict=True) if pair[0] is not pair[1]]
