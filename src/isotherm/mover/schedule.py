"""Where the weights of a round come from, and which of them are on their way together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from isotherm.arrays import Int32Array
from isotherm.placement import Refill
from isotherm.topology import Topology

PEERS_AT_ONCE = 2
"""Ranks that a rank sends to or receives from within one leg."""


@dataclass(frozen=True)
class Fill:
    """Slot ``target`` of a layer receives ``expert`` from slot ``source``.

    Attributes:
        leg: fills of one leg are carried together. Each rank carries its parts of the legs in ascending
            order, so a leg may take on from where an earlier one of the same round arrived.
        buffer, source_buffer: the buffer of the target's rank in which the weights arrive, and that of the
            source's rank from which they are taken on; -1: the slot itself.
    """

    layer: int
    target: int
    expert: int
    source: int
    leg: int = 0
    buffer: int = -1
    source_buffer: int = -1


def schedule_fills(refills: Sequence[Refill], live_LP: Int32Array, topology: Topology) -> tuple[Fill, ...]:
    """The fills of one round, by ascending leg. Deterministic.

    ``live_LP`` tells what may be read: the expert of each live slot, -1 elsewhere. Sources are on the same
    rank, else on the same node, else on the rank that sends least. An expert crosses to a node once: further
    slots there take it on from where it arrived, in a later leg. Within a leg a rank has at most
    `PEERS_AT_ONCE` peers. The sources that refills name are not looked at: they know nothing of each other.
    """
    chooser = _Sources(live_LP, topology)
    return _in_legs([chooser.choose(refill) for refill in refills], topology)


@dataclass(frozen=True)
class _Arrival:
    """A slot whose expert can be read in waves after ``wave``; -1: it is live, from the start."""

    slot: int
    wave: int


class _Sources:
    """Chooses the sources of one round's refills, in their order."""

    def __init__(self, live_LP: Int32Array, topology: Topology) -> None:
        self._live_LP = live_LP
        self._topology = topology
        self._arrivals: dict[tuple[int, int], list[_Arrival]] = {}
        self._sends: Counter[int] = Counter()  # by rank, to others

    def choose(self, refill: Refill) -> Fill:
        """The fill; its leg is the wave that it has to travel in."""
        topology, rank = self._topology, self._topology.rank_of(refill.slot)
        known = self._known(refill.layer, refill.expert)

        def cost(arrival: _Arrival) -> tuple[bool, bool, int, int, int]:
            other = topology.rank_of(arrival.slot)
            is_far = other // topology.ranks_per_node != rank // topology.ranks_per_node
            return other != rank, is_far, arrival.wave, self._sends[other], arrival.slot

        source = min(known, key=cost)
        sender = topology.rank_of(source.slot)
        self._sends[sender] += sender != rank
        known.append(_Arrival(refill.slot, source.wave + 1))
        return Fill(refill.layer, refill.slot, refill.expert, source.slot, source.wave + 1)

    def _known(self, layer: int, expert: int) -> list[_Arrival]:
        known = self._arrivals.get((layer, expert))
        if known is None:
            live = np.flatnonzero(self._live_LP[layer] == expert).tolist()
            known = self._arrivals[layer, expert] = [_Arrival(slot, -1) for slot in live]
        return known


class _Leg:
    """Fills that are carried together, and whom each rank talks to meanwhile."""

    def __init__(self) -> None:
        self.fills: list[Fill] = []
        self._peers: dict[int, set[int]] = {}

    def try_add(self, fill: Fill, ranks: tuple[int, int]) -> bool:
        for one, other in (ranks, ranks[::-1]):
            peers = self._peers.get(one, set()) | {other}
            if one != other and len(peers) > PEERS_AT_ONCE:
                return False
        if ranks[0] != ranks[1]:
            for one, other in (ranks, ranks[::-1]):
                self._peers.setdefault(one, set()).add(other)
        self.fills.append(fill)
        return True


def _in_legs(fills: Sequence[Fill], topology: Topology) -> tuple[Fill, ...]:
    """Legs of at most so many peers out of waves, each wave's behind those of the one before."""
    legs: list[_Leg] = []
    for wave in sorted({fill.leg for fill in fills}):
        of_wave: list[_Leg] = []
        for fill in fills:
            ranks = topology.rank_of(fill.source), topology.rank_of(fill.target)
            if fill.leg != wave or any(leg.try_add(fill, ranks) for leg in of_wave):
                continue
            of_wave.append(_Leg())
            of_wave[-1].try_add(fill, ranks)
        legs += of_wave
    return tuple(replace(fill, leg=number) for number, leg in enumerate(legs) for fill in leg.fills)
