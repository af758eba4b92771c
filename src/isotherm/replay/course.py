"""Weights on their way, in virtual time: slots are retired, filled within the budget, published.

A slot serves nobody from the moment it is retired until its new expert has arrived, and every expert keeps a
slot that serves it throughout.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from isotherm.arrays import FloatArray, Int32Array, Int64Array
from isotherm.placement import EMPTY, Placement, Plan, Refill
from isotherm.planner import PlanRequest, balanced_shares
from isotherm.planner.order.rounds import order_rounds
from isotherm.replay.cluster import Cluster


@dataclass(frozen=True)
class Pace:
    """How fast weights travel: ``in_flight`` slots at most are retired at once, ``bytes_per_step`` arrive."""

    cluster: Cluster
    in_flight: int
    bytes_per_step: int

    def steps_for(self, refills: int) -> int:
        """Steps from retiring so many slots until they serve again: one in which all ranks leave them, and
        those in which the bytes arrive."""
        return 1 + -(-refills * self.cluster.expert_bytes // self.bytes_per_step)


@dataclass(frozen=True, eq=False)
class Course:
    """What serves now, and what is under way.

    Attributes:
        live: int32 [layers, slots], the expert that each slot serves; -1 while it is retired or filled.
        shares: float64 [layers, slots], in force. goal_shares: those at the end of the way.
        batch: the slots that are empty now, and what they will hold. rounds: those that follow.
        ready_step: when the batch is published, or the plan reaches the ranks; None: nothing is under way.
        moves: slots filled so far. moving_seconds: how long links were busy with that.
    """

    live: Int32Array
    shares: FloatArray
    experts: int
    goal_shares: FloatArray
    batch: tuple[Refill, ...] = ()
    rounds: tuple[tuple[Refill, ...], ...] = ()
    ready_step: int | None = None
    moves: int = 0
    moving_seconds: float = 0.0

    @classmethod
    def start(cls, placement: Placement) -> Course:
        shares_LP = placement.even_shares()
        return cls(placement.slot_to_expert, shares_LP, placement.experts, shares_LP)

    @property
    def placement(self) -> Placement:
        return Placement(self.live, self.experts)


def aim(course: Course, plan: Plan, step: int, heat_LE: FloatArray | Int64Array, pace: Pace) -> Course:
    """The course that leads to ``plan``, which reaches the ranks at ``step``. ``heat_LE`` is the newest:
    of the rounds that lead there, those come first that matter most for it."""
    assert course.ready_step is None, "a plan is made when the last one is carried out"
    topology = pace.cluster.topology
    request = PlanRequest(
        np.asarray(heat_LE, np.float64), topology, course.placement, slots_per_round=pace.in_flight
    )
    rounds = tuple(order_rounds(request, plan.placement))
    return replace(course, goal_shares=plan.shares, rounds=rounds, ready_step=step)


def arrive(course: Course, heat_LE: FloatArray | Int64Array, pace: Pace) -> Course:
    """What serves from ``course.ready_step`` on: the batch is published, and the next one retired. While
    slots are empty the others have the best shares for ``heat_LE``."""
    assert course.ready_step is not None
    live_LP = course.live.copy()
    for refill in course.batch:
        live_LP[refill.layer, refill.slot] = refill.expert
    if not course.rounds:
        return replace(course, live=live_LP, shares=course.goal_shares, batch=(), ready_step=None)
    batch, *rounds = course.rounds
    _, slots, _, sources = np.array(batch).T
    live_LP[[refill.layer for refill in batch], slots] = EMPTY
    placement = Placement(live_LP, course.experts)
    return replace(
        course,
        live=live_LP,
        shares=balanced_shares(heat_LE, placement, pace.cluster.topology),
        batch=batch,
        rounds=tuple(rounds),
        ready_step=course.ready_step + pace.steps_for(len(batch)),
        moves=course.moves + len(batch),
        moving_seconds=course.moving_seconds + pace.cluster.move_seconds(slots, sources),
    )
