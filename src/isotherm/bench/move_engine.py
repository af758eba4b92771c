"""An engine whose experts move whenever it is asked to: DeepSeek-V3's shape with small weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from isotherm.balancer import Balancer
from isotherm.bench.engine import EP2, TOKENS, SyntheticEngine
from isotherm.bench.traffic import SHAPE
from isotherm.config import Config
from isotherm.control import GroupLink, Transfer
from isotherm.decide import Decision
from isotherm.decide import State as Mind
from isotherm.placement import Move, Placement, Plan
from isotherm.planner import PlanRequest
from isotherm.planner.order.rounds import order_rounds
from isotherm.status import State, Statistics

BYTES_PER_EXPERT = 1024
MOVES = 96
"""In each plan."""
PER_STEP = 4
"""Experts that the budget lets arrive in a step."""
SNAPSHOT_STEPS = 4

CONFIG = Config(
    mode="off",
    window_steps=SNAPSHOT_STEPS,
    slices=1,
    max_moves=MOVES,
    move_bytes_per_step=PER_STEP * BYTES_PER_EXPERT,
)


class WeighedLink(GroupLink):
    """Knows how many bytes of weights this rank has sent."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group)
        self._weighed = [0]  # shared with the links made in its place

    @property
    def weight_bytes(self) -> int:
        return self._weighed[0]

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        self._weighed[0] += sum(transfer.buffer.nbytes for transfer in sends)
        super().exchange(sends, receives)


@dataclass(frozen=True)
class Published:
    """A plan that was carried out: moves, and the steps from its decision until all was published."""

    moves: int
    steps: int


class MovingEngine:
    """One rank: a synthetic engine, its balancer, and plans made on purpose. Called on every rank alike.

    The mind thinks as ever, on the planner's thread of rank 0, and in mode full a plan of `MOVES` moves takes
    the place of what it decides: two ranks of 144 slots are balanced by shares alone.
    """

    def __init__(self, *, quick: bool) -> None:
        self.engine = SyntheticEngine(dist.get_rank(), quick=quick)
        self.plain_tables = torch.arange(SHAPE.experts).repeat(SHAPE.layers, 1).unbind()
        """What an engine without balancing looks slots up in, layer by layer."""
        self.weights = [
            {"w": torch.zeros((EP2.slots_per_rank, BYTES_PER_EXPERT), dtype=torch.uint8)}
            for _ in range(SHAPE.layers)
        ]
        self.link = WeighedLink(dist.new_group(backend="gloo"))
        self._decided: Decision | None = None
        self.published: list[Published] = []
        self._moves = 0  # of the plans published
        self.balancer = Balancer(SHAPE, EP2, group=self.link, weights=self.weights, config=CONFIG)
        self._plan_on_purpose()

    def begin_step(self) -> int:
        batch = self.engine.begin_step()
        self.balancer.begin_step(TOKENS, num_decode_tokens=TOKENS)
        return batch

    def route_all(self, batch: int) -> None:
        """What the layers of a step ask, without what they do beside."""
        for layer in range(SHAPE.layers):
            self.balancer.route(layer, self.engine.ids[batch + layer])

    def idle_step(self) -> Statistics:
        """A step of next to no work; what the balancer says of itself after it."""
        self.route_all(self.begin_step())
        self.balancer.end_step()
        return self.note()

    def note(self) -> Statistics:
        """Notes a plan that was carried out since the last call, on rank 0."""
        statistics, decided = self.balancer.statistics(), self._decided
        moved = statistics.moves - self._moves
        if decided is not None and decided.plan is not None and statistics.state is State.OBSERVING:
            planned = len(decided.plan.moves)
            if moved >= planned:
                self._decided, self._moves = None, statistics.moves
                self.published.append(Published(planned, statistics.steps - decided.step))
        return statistics

    def step_until(self, state: State) -> None:
        """Steps until every rank is in ``state``."""
        while True:
            reached = torch.tensor(int(self.idle_step().state is state))
            dist.all_reduce(reached, op=dist.ReduceOp.MIN)
            if reached:
                return

    def _plan_on_purpose(self) -> None:
        """From now on modes below full decide as ever, and full moves experts."""
        owner, name = self.balancer._loop, "_plan"
        real: Callable[..., Any] = getattr(owner, name)
        setattr(owner, name, lambda *what: self._replan(real(*what)))

    def _replan(self, made: Any) -> Any:
        """What an attempt to plan returned, with another decision."""
        mind: Mind = made.mind
        decision: Decision = made.decision
        if mind.config.mode != "full" or not mind.settled:
            return replace(made, decision=replace(decision, action="nothing", plan=None))
        plan = _plan_moves(mind.placement, decision.step)
        moved = len(plan.moves) * mind.bytes_per_expert
        self._decided = replace(decision, action="moves", plan=plan, moved_bytes=moved)
        return replace(made, decision=self._decided)


def _plan_moves(current: Placement, seed: int) -> Plan:
    """One expert each way in as many layers as make `MOVES` moves: an expert of both ranks stays on one, and
    one of a single rank comes to the other."""
    rng = np.random.default_rng(seed)
    goal_LP, per_rank = current.slot_to_expert.copy(), EP2.slots_per_rank
    for layer_P in goal_LP[: MOVES // 2]:
        own_S, other_S = layer_P[:per_rank], layer_P[per_rank:]  # views
        both = rng.permutation(np.intersect1d(own_S, other_S))
        singles = [rng.permutation(np.setdiff1d(*pair)) for pair in ((other_S, own_S), (own_S, other_S))]
        own_S[own_S == both[0]] = singles[0][0]
        other_S[other_S == both[1]] = singles[1][0]
    goal = Placement(goal_LP, current.experts)
    request = PlanRequest(np.ones((goal.layers, goal.experts)), EP2, current, shares="even")
    moves = tuple(
        Move(int(layer), int(slot), int(goal_LP[layer, slot]))
        for layer, slot in np.argwhere(goal_LP != current.slot_to_expert)
    )
    ones_L = np.ones(goal.layers)
    rounds = order_rounds(request, goal)
    return Plan(goal, goal.even_shares(), moves, ones_L, ones_L, "on purpose", SHAPE.ids, rounds)


class WeightCopies(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of ``weights`` that operations of the calling thread write."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages = {tensor.untyped_storage().data_ptr() for tensor in weights}
        self.written_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable and isinstance(args[0], torch.Tensor):
            written = args[0]
            if written.untyped_storage().data_ptr() in self._storages:
                self.written_bytes += written.nbytes
        return result
