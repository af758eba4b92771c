"""Weights on their way, in virtual time: slots are retired, filled within the budget, published.

As the mover does it, in batches: a slot serves nobody from the moment it is retired until its new expert has
arrived, and every expert keeps a slot that serves it throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from isotherm.arrays import FloatArray, Int32Array, Int64Array
from isotherm.placement import EMPTY, Move, Placement, Plan
from isotherm.planner import balanced_shares
from isotherm.replay.cluster import Cluster


@dataclass(frozen=True)
class Pace:
    """How fast weights travel: ``in_flight`` slots at most are retired at once, ``bytes_per_step`` arrive."""

    cluster: Cluster
    in_flight: int
    bytes_per_step: int

    def steps_for(self, moves: int) -> int:
        """Steps from retiring ``moves`` slots until they serve again: one in which all ranks leave them, and
        those in which the bytes arrive."""
        return 1 + -(-moves * self.cluster.expert_bytes // self.bytes_per_step)


@dataclass(frozen=True, eq=False)
class Course:
    """What serves now, and what is under way.

    Attributes:
        live: int32 [layers, slots], the expert that each slot serves; -1 while it is retired or filled.
        shares: float64 [layers, slots], in force.
        goal, goal_shares: where the plan leads.
        batch: the slots that are empty now, and what they will hold.
        ready_step: when the batch is published, or the plan reaches the ranks; None: nothing is under way.
        moves: slots filled so far. moving_seconds: how long links were busy with that.
    """

    live: Int32Array
    shares: FloatArray
    experts: int
    goal: Int32Array
    goal_shares: FloatArray
    batch: tuple[Move, ...] = ()
    ready_step: int | None = None
    moves: int = 0
    moving_seconds: float = 0.0

    @classmethod
    def start(cls, placement: Placement) -> Course:
        slots_LP, shares_LP = placement.slot_to_expert, placement.even_shares()
        return cls(slots_LP, shares_LP, placement.experts, slots_LP, shares_LP)

    @property
    def placement(self) -> Placement:
        return Placement(self.live, self.experts)


def aim(course: Course, plan: Plan, step: int) -> Course:
    """The course that leads to ``plan``, which reaches the ranks at ``step``."""
    assert course.ready_step is None, "a plan is made when the last one is carried out"
    return replace(course, goal=plan.placement.slot_to_expert, goal_shares=plan.shares, ready_step=step)


def arrive(course: Course, heat_LE: FloatArray | Int64Array, pace: Pace) -> Course:
    """What serves from ``course.ready_step`` on: the batch is published, and the next one retired. While
    slots are empty the others have the best shares for ``heat_LE``."""
    assert course.ready_step is not None
    filled_LP = course.live.copy()
    for move in course.batch:
        filled_LP[move.layer, move.slot] = move.expert
    batch = next_moves(filled_LP, course.goal, course.experts, pace.in_flight)
    if not batch:
        return replace(course, live=course.goal, shares=course.goal_shares, batch=(), ready_step=None)
    live_LP = filled_LP.copy()
    live_LP[[move.layer for move in batch], [move.slot for move in batch]] = EMPTY
    placement = Placement(live_LP, course.experts)
    return replace(
        course,
        live=live_LP,
        shares=balanced_shares(heat_LE, placement, pace.cluster.topology),
        batch=batch,
        ready_step=course.ready_step + pace.steps_for(len(batch)),
        moves=course.moves + len(batch),
        moving_seconds=course.moving_seconds + _seconds(batch, live_LP, pace.cluster),
    )


def next_moves(live_LP: Int32Array, goal_LP: Int32Array, experts: int, limit: int) -> tuple[Move, ...]:
    """The slots to retire next, at most ``limit``, and what each is to hold; none where the goal is reached.

    A slot that holds the last replica of its expert waits. Where all slots of a layer wait for one another (a
    swap), the expert of one is first copied into a redundant slot.
    """
    batch: list[Move] = []
    pending_LP = (live_LP != goal_LP) & (goal_LP != EMPTY)
    for layer in np.flatnonzero(pending_LP.any(axis=1)).tolist():
        if len(batch) == limit:
            break
        batch += _layer_moves(layer, live_LP[layer], goal_LP[layer], experts, limit - len(batch))
    return tuple(batch)


def _layer_moves(layer: int, live_P: Int32Array, goal_P: Int32Array, experts: int, limit: int) -> list[Move]:
    replicas_E = np.bincount(live_P[live_P >= 0], minlength=experts)
    settled_P = live_P == goal_P
    arrived = set(goal_P[settled_P].tolist())
    # Slots whose expert has arrived nowhere come first: then each detour brings one further, and all arrive.
    pending = np.flatnonzero(~settled_P & (goal_P != EMPTY)).tolist()
    pending.sort(key=lambda slot: int(goal_P[slot]) in arrived)
    moves: list[Move] = []
    for slot in pending:
        expert = int(live_P[slot])
        if len(moves) < limit and (expert == EMPTY or replicas_E[expert] > 1):
            replicas_E[expert] -= expert != EMPTY
            moves.append(Move(layer, slot, int(goal_P[slot])))
    if moves:
        return moves
    redundant = int(np.flatnonzero((live_P != EMPTY) & (replicas_E[live_P] > 1))[0])
    return [Move(layer, redundant, int(live_P[pending[0]]))]


def _seconds(batch: tuple[Move, ...], live_LP: Int32Array, cluster: Cluster) -> float:
    """How long links are busy with a batch, each slot filled from the nearest replica."""
    targets = np.array([move.slot for move in batch], np.int64)
    sources = np.array([nearest_slot(move, live_LP[move.layer], cluster) for move in batch], np.int64)
    return cluster.move_seconds(targets, sources)


def nearest_slot(move: Move, live_P: Int32Array, cluster: Cluster) -> int:
    """The slot of ``live_P`` to fill a slot from: on its rank, else on its node, else the lowest."""
    slots = np.flatnonzero(live_P == move.expert)
    size, per_node = cluster.topology.slots_per_rank, cluster.topology.ranks_per_node
    rank, ranks = move.slot // size, slots // size
    far = (ranks != rank) * 1 + (ranks // per_node != rank // per_node) * 1
    return int(slots[far.argmin()])
