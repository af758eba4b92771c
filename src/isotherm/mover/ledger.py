"""Retire, fill, publish: what every slot holds, as a state that all ranks advance alike.

A slot's content changes only while nobody can use it, so ranks need not change anything at the same
instant. A batch of slots is *retired* (share 0) in the tables of one epoch; when every rank has finished
a step with those tables the slots are dead, and are *filled*; when all have arrived they are *published*
in the tables of the next epoch, which also retires the next batch. A rank that still has the older table
uses only slots that are unchanged in both, so every mix of tables in flight is right.

Each transition is a function of the ledger and of headers gathered in a round, so the ledgers of all ranks
are equal after equal rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from isotherm.arrays import FloatArray, Int32Array, Int64Array, frozen
from isotherm.placement import EMPTY, Placement, check_shares, digest
from isotherm.topology import Topology


class Phase(Enum):
    SETTLED = "settled"
    RETIRING = "retiring"
    FILLING = "filling"


@dataclass(frozen=True)
class Rules:
    """How the way is made: at most ``limit`` slots are retired at once, and ``reshare`` gives the shares of
    every placement on the way, whose retired and dead slots are empty."""

    topology: Topology
    limit: int
    reshare: Callable[[Placement], FloatArray]


@dataclass(frozen=True)
class Fill:
    """Slot ``target`` of a layer receives ``expert`` from slot ``source``."""

    layer: int
    target: int
    expert: int
    source: int


@dataclass(frozen=True, eq=False)
class Ledger:
    """What each slot holds and what is under way.

    Attributes:
        content: int32 [layers, slots], the expert whose weights the slot holds; -1 from the moment it is
            dead until its new expert has arrived.
        version: int64 [layers, slots], counts the changes of content.
        shares: float64 [layers, slots], in force in the tables of ``epoch``; 0 where retired or empty.
        goal, goal_shares: where the plan in progress leads; equal to what is when settled.
        epoch: number of the newest tables. All tables of one epoch are equal on all ranks.
        batch: the slots that are being retired or filled.
        since_step: the step that every rank had finished when the phase began.
    """

    content: Int32Array
    version: Int64Array
    shares: FloatArray
    experts: int
    goal: Int32Array
    goal_shares: FloatArray
    epoch: int = 0
    phase: Phase = Phase.SETTLED
    batch: tuple[Fill, ...] = ()
    since_step: int = 0

    @classmethod
    def start(cls, placement: Placement, shares_LP: FloatArray) -> Ledger:
        """The ledger of weights as loaded."""
        content_LP = placement.slot_to_expert
        return cls(
            content=content_LP,
            version=np.zeros(content_LP.shape, np.int64),
            shares=frozen(shares_LP, np.float64),
            experts=placement.experts,
            goal=content_LP,
            goal_shares=frozen(shares_LP, np.float64),
        )

    @property
    def placement(self) -> Placement:
        """What the slots hold now, dead ones empty."""
        return Placement(self.content, self.experts)

    @property
    def identity(self) -> int:
        """Names this content, versions included: a plan made for another is not carried out."""
        return digest(self.content.tobytes() + self.version.tobytes())


def accept(ledger: Ledger, goal: Placement, shares_LP: FloatArray, rules: Rules, step: int) -> Ledger:
    """Begins the way to ``goal`` and its shares, from whatever is under way now.

    The plan's own shares are in force when all its slots are filled; until then those of ``rules``. A batch
    that is being filled is finished first.

    Raises:
        ValueError: a layer has no redundant slot and would have to move: there is no slot to go through.
    """
    _check_reachable(ledger, goal)
    aimed = replace(ledger, goal=goal.slot_to_expert, goal_shares=frozen(shares_LP, np.float64))
    if ledger.phase is Phase.FILLING:
        return aimed
    # A slot that is being retired still holds its expert: retiring is taken back by choosing anew.
    return _begin_batch(aimed, rules, step)


def retired(ledger: Ledger, step: int) -> Ledger:
    """Every rank has finished a step with the tables of this epoch: the batch is dead."""
    assert ledger.phase is Phase.RETIRING
    content_LP, version_LP = _write(ledger, EMPTY)
    return replace(ledger, content=content_LP, version=version_LP, phase=Phase.FILLING, since_step=step)


def filled(ledger: Ledger, rules: Rules, step: int) -> Ledger:
    """The batch has arrived: publishes it, and retires the next one in the same epoch."""
    assert ledger.phase is Phase.FILLING
    content_LP, version_LP = _write(ledger, None)
    published = replace(ledger, content=content_LP, version=version_LP, batch=())
    return _begin_batch(published, rules, step)


def called_off(ledger: Ledger, rules: Rules, step: int) -> Ledger:
    """The plan in progress is given up: what is, is the goal. A batch that is being retired is live again;
    one that is being filled stays empty, whatever has arrived of it, until a later plan fills it."""
    assert ledger.phase is not Phase.SETTLED
    shares_LP = _live_shares(ledger.content, ledger.experts, rules)
    return replace(
        ledger,
        shares=shares_LP,
        goal=ledger.content,
        goal_shares=shares_LP,
        epoch=ledger.epoch + 1,
        phase=Phase.SETTLED,
        batch=(),
        since_step=step,
    )


def _write(ledger: Ledger, expert: int | None) -> tuple[Int32Array, Int64Array]:
    """Content and version with ``expert`` in the batch's slots; None: each its own."""
    content_LP, version_LP = ledger.content.copy(), ledger.version.copy()
    for fill in ledger.batch:
        content_LP[fill.layer, fill.target] = fill.expert if expert is None else expert
        version_LP[fill.layer, fill.target] += 1
    return frozen(content_LP, np.int32), frozen(version_LP, np.int64)


def _begin_batch(ledger: Ledger, rules: Rules, step: int) -> Ledger:
    batch = next_batch(ledger.content, ledger.goal, ledger.experts, rules.topology, rules.limit)
    live_LP = ledger.content.copy()
    for fill in batch:
        live_LP[fill.layer, fill.target] = EMPTY
    there = np.array_equal(live_LP, ledger.goal)
    return replace(
        ledger,
        shares=ledger.goal_shares if there else _live_shares(live_LP, ledger.experts, rules),
        epoch=ledger.epoch + 1,
        phase=Phase.RETIRING if batch else Phase.SETTLED,
        batch=batch,
        since_step=step,
    )


def _live_shares(live_LP: Int32Array, experts: int, rules: Rules) -> FloatArray:
    placement = Placement(live_LP, experts)
    shares_LP = rules.reshare(placement)
    check_shares(placement, shares_LP)
    return frozen(shares_LP, np.float64)


def next_batch(
    content_LP: Int32Array, goal_LP: Int32Array, experts: int, topology: Topology, limit: int
) -> tuple[Fill, ...]:
    """The slots to retire and fill next on the way from ``content`` to ``goal``; empty when there.

    Every expert keeps a live replica throughout. Where a layer's pending slots all hold the last replica
    of their expert (swaps), one expert of each swap is first copied into a redundant slot, on its way.
    """
    batch: list[Fill] = []
    for layer in np.flatnonzero((content_LP != goal_LP).any(axis=1)):
        room = limit - len(batch)
        if room <= 0:
            break
        row = _LayerMoves(int(layer), content_LP[layer], goal_LP[layer], experts, topology)
        batch += row.fills(room) or row.detours(room)
    return tuple(batch)


class _LayerMoves:
    """The pending moves of one layer, and the live replicas that are left as they are chosen.

    Slots that want an expert which no slot of its own in the goal holds yet come first. So the number of
    experts that have arrived somewhere never falls, and each detour is followed by a rise: every goal is
    reached.
    """

    def __init__(
        self,
        layer: int,
        content_P: Int32Array,
        goal_P: Int32Array,
        experts: int,
        topology: Topology,
    ) -> None:
        self._layer = layer
        self._content_P = content_P
        self._goal_P = goal_P
        self._topology = topology
        self._live_P = content_P != EMPTY
        self._replicas_E = np.bincount(content_P[self._live_P], minlength=experts)
        settled_P = content_P == goal_P
        arrived = set(goal_P[settled_P].tolist())
        pending = np.flatnonzero(~settled_P & (goal_P != EMPTY)).tolist()
        self._pending = sorted(pending, key=lambda slot: int(goal_P[slot]) in arrived)

    def fills(self, room: int) -> list[Fill]:
        """Up to ``room`` slots whose expert lives elsewhere and that can take what the goal wants."""
        chosen: list[int] = []
        for slot in self._pending:
            if len(chosen) < room and self._can_retire(slot):
                self._retire(slot)
                chosen.append(slot)
        return [self._fill(slot, int(self._goal_P[slot])) for slot in chosen]

    def detours(self, room: int) -> list[Fill]:
        """Copies one expert of each swap into a redundant slot, so that the slot it leaves becomes free.

        Called when no pending slot can be retired. Then each holds the last replica of an expert that
        another pending slot wants, and wants one that another holds: they are cycles.
        """
        chosen: list[tuple[int, int]] = []
        for blocked in self._one_of_each_cycle():
            redundant = next(filter(self._can_retire, range(len(self._content_P))), None)
            if redundant is None or len(chosen) == room:
                break
            self._retire(redundant)
            chosen.append((redundant, int(self._content_P[blocked])))
        return [self._fill(slot, expert) for slot, expert in chosen]

    def _one_of_each_cycle(self) -> list[int]:
        holder = {int(self._content_P[slot]): slot for slot in self._pending}
        covered: set[int] = set()
        firsts = []
        for first in self._pending:
            if first not in covered:
                firsts.append(first)
            slot: int | None = first
            while slot is not None and slot not in covered:
                covered.add(slot)
                slot = holder.get(int(self._goal_P[slot]))
        return firsts

    def _can_retire(self, slot: int) -> bool:
        expert = self._content_P[slot]
        return bool(expert == EMPTY or self._replicas_E[expert] > 1)

    def _retire(self, slot: int) -> None:
        if self._live_P[slot]:
            self._replicas_E[self._content_P[slot]] -= 1
            self._live_P[slot] = False

    def _fill(self, target: int, expert: int) -> Fill:
        """Filled from the nearest live replica: same rank, same node, then the lowest slot."""
        sources = np.flatnonzero(self._live_P & (self._content_P == expert))
        rank = self._topology.rank_of(target)
        per_node = self._topology.ranks_per_node

        def distance(slot: int) -> tuple[bool, bool, int]:
            other = self._topology.rank_of(slot)
            return other != rank, other // per_node != rank // per_node, slot

        return Fill(self._layer, target, expert, min(map(int, sources), key=distance))


def _check_reachable(ledger: Ledger, goal: Placement) -> None:
    for layer in np.flatnonzero((ledger.content != goal.slot_to_expert).any(axis=1)):
        content_P = ledger.content[layer]
        if len(content_P) == ledger.experts:
            raise ValueError(
                f"layer {layer} has {len(content_P)} slots for {ledger.experts} experts, none "
                "redundant: its experts cannot move; give the topology redundant slots"
            )
