"""Three ranks with real movers, and everything that may happen to them, in every order.

A rank is always in a step (``depth`` of them are not finished), and begins the next, by the newest tables
that it was left, when it likes; it tells its header when it likes, and acts on a round when it likes; a slot
is written when its rank likes, or the write fails; a plan may be called off, or replaced by another, in any
round. A rank that stops is one to which nothing happens any more. A link may break when some have acted on
a round that the others then miss; what is on its way is lost, and all go on over another link.
"""

from __future__ import annotations

import copy
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from ways import rounds_between

from isotherm.mover.ledger import Ledger, Phase, Rules
from isotherm.mover.mover import Mover
from isotherm.placement import EMPTY, Placement
from isotherm.topology import Topology
from memory_link import memory_links

EXPERTS, RANKS = 2, 3
TOPOLOGY = Topology(ranks=RANKS, slots_per_rank=1)
START = (0, 1, 1)
RULES = Rules(TOPOLOGY, Placement.even_shares)
GARBAGE = -2
"""What a slot holds while it is written, and after a write that failed."""


def placement(row):
    return Placement(np.array([row], np.int32), EXPERTS)


@cache
def ways(content, goal):
    """The rounds from what slots hold to ``goal``, computed once: there are thousands of states."""
    return rounds_between(placement(content), placement(goal), TOPOLOGY, limit=2)


@dataclass(frozen=True)
class Tables:
    """What a step may use: the expert of each live slot, EMPTY elsewhere."""

    epoch: int
    live_P: tuple[int, ...]

    @classmethod
    def of(cls, ledger):
        live = ledger.shares[0] > 0
        return cls(ledger.epoch, tuple(np.where(live, ledger.content[0], EMPTY).tolist()))


class Node:
    """A rank: its mover, its engine, and what carries its weights (it is the mover's carrier too)."""

    start_at, rules = placement(START), RULES

    def __init__(self, rank, depth):
        self.rank = rank
        start = Ledger.start(self.start_at, self.start_at.even_shares())
        self.mover = Mover(
            start,
            self.rules,
            self,
            bytes_per_expert=1,
            bytes_per_step=100,
            finished=self.finished,
            publish=self.publish,
        )
        self.staged = Tables.of(start)
        self.unfinished = (self.staged,) * depth
        self.epoch = 0
        self.chunks = ()  # of fills: those started and not ended
        self.has_begun = False  # the oldest of them is being written
        self.started = self.ended = self.failed = 0
        self.words = None  # told, for the next round
        self.is_acting = False

    def clone(self):
        other = copy.copy(self)
        mover = other.mover = copy.copy(self.mover)
        mover._carrier, mover._finished, mover._publish = other, other.finished, other.publish
        return other

    def finished(self):
        return self.epoch, 1

    @property
    def number(self):
        """Of its oldest chunk, the same on every rank."""
        return self.ended + self.mover._lead

    def publish(self, ledger):
        self.staged = Tables.of(ledger)

    def start(self, fills, link):
        self.started += 1
        self.chunks += (fills,)

    def key(self):
        ledger = self.mover.ledger
        return (
            *(ledger.content.tobytes(), ledger.rounds, ledger.goal, ledger.shares.tobytes()),
            *(ledger.phase, ledger.batch, ledger.epoch, self.mover._carried, self.mover._turns),
            *(
                self.mover._ended,
                self.mover._is_off,
                self.mover._lead,
                self.staged,
                self.unfinished,
                self.epoch,
            ),
            *(self.chunks, self.has_begun, self.started, self.ended, self.failed, self.words, self.is_acting),
        )


@dataclass
class World:
    """All ranks at one moment. ``goals`` are left to reach, the first ``replacements`` of them before the one
    before is; ``failures``, ``call_offs`` and ``cuts`` of the link may still come."""

    nodes: list[Node]
    memory: list[int]
    goals: tuple[tuple[int, ...], ...]
    failures: int
    call_offs: int
    replacements: int = 0
    cuts: int = 0
    sent: dict = field(default_factory=dict)  # (chunk number, target) -> expert, on its way
    headers: np.ndarray | None = None
    aimed: tuple[int, ...] | None = None  # this round delivers a plan
    is_off: bool = False  # this round calls off

    def clone(self):
        nodes = [node.clone() for node in self.nodes]
        return replace(self, nodes=nodes, memory=list(self.memory), sent=dict(self.sent))

    def key(self):
        headers = None if self.headers is None else self.headers.tobytes()
        sent = tuple(sorted(self.sent.items()))
        budget = (self.goals, self.failures, self.call_offs, self.replacements, self.cuts)
        return (
            *(node.key() for node in self.nodes),
            *self.memory,
            budget,
            sent,
            headers,
            self.aimed,
            self.is_off,
        )

    def wrong(self):
        """What a token of a step that is not finished, or begins now, could meet, or None."""
        for node in self.nodes:
            for tables in (*node.unfinished, node.staged):
                if not set(range(EXPERTS)) <= set(tables.live_P):
                    return f"rank {node.rank} knows no live slot of an expert: {tables}"
                for slot, expert in enumerate(tables.live_P):
                    if expert not in (EMPTY, self.memory[slot]):
                        return f"rank {node.rank} by {tables} sends to slot {slot} of {self.memory}"
        return None

    # -- what may happen ------------------------------------------------------------------------------

    def happenings(self, in_one):
        """Names and arguments of methods. ``in_one``: all tell and act at once, between whatever else
        happens; else each does when it likes."""
        name = "beat" if in_one else "round"
        for rank, node in enumerate(self.nodes):
            if {node.epoch, *(tables.epoch for tables in node.unfinished)} != {node.staged.epoch}:
                yield "step", (rank,)
            if node.is_acting:
                yield "act", (rank,)
            elif node.words is None and not in_one:
                yield "tell", (rank,)
            if node.chunks and not node.has_begun:
                yield "begin", (rank,)
            if node.has_begun and self.has_arrived(node):
                yield "end", (rank,)
                if self.failures:
                    yield "fail", (rank,)
        if in_one or all(node.words is not None for node in self.nodes):
            yield name, (False,)
            if self.cuts:
                yield from (("cut", (first,)) for first in range(1, len(self.nodes)))
            if self.nodes[0].mover.ledger.phase is not Phase.SETTLED:
                if self.call_offs:
                    yield name, (True,)
                if self.replacements and self.goals:
                    yield name, (False, True)

    def is_over(self):
        """Whether nothing can change any more but steps."""
        settled = all(node.mover.ledger.phase is Phase.SETTLED and not node.chunks for node in self.nodes)
        return settled and not self.goals and self.aimed is None

    def has_arrived(self, node):
        """Whether the sender of all that the oldest chunk brings here has sent it."""
        return all(
            (node.number, fill.target) in self.sent for fill in node.chunks[0] if fill.target == node.rank
        )

    def step(self, rank):
        node = self.nodes[rank]
        node.epoch = node.unfinished[0].epoch
        node.unfinished = (*node.unfinished[1:], node.staged)

    def tell(self, rank):
        self.nodes[rank].words = tuple(self.nodes[rank].mover.header())

    def round(self, is_off, is_replaced=False):
        self.headers = np.array([node.words for node in self.nodes], np.int64)
        self.is_off = is_off
        self.call_offs -= is_off
        self.aimed = None
        is_settled = self.nodes[0].mover.ledger.phase is Phase.SETTLED
        if self.goals and (is_settled or is_replaced):
            self.replacements -= is_replaced
            self.aimed, self.goals = self.goals[0], self.goals[1:]
        for node in self.nodes:
            node.words, node.is_acting = None, True

    def beat(self, is_off, is_replaced=False):
        for rank in range(len(self.nodes)):
            self.tell(rank)
        self.round(is_off, is_replaced)
        for rank in range(len(self.nodes)):
            self.act(rank)

    def act(self, rank):
        node = self.nodes[rank]
        node.is_acting = False
        if self.is_off:
            node.mover.call_off()
        if self.aimed is not None:
            self.aim(node)
        node.mover.act(self.headers, None)

    def aim(self, node):
        goal, content = placement(self.aimed), node.mover.ledger.content[0].tolist()
        node.mover.aim(goal, goal.even_shares(), ways(tuple(content), self.aimed))

    def begin(self, rank):
        node = self.nodes[rank]
        node.has_begun = True
        for fill in node.chunks[0]:
            if fill.source == rank:
                self.sent[node.number, fill.target] = self.memory[rank]
            if fill.target == rank:
                self.write(node, fill, GARBAGE)
        if all(fill.target != rank for fill in node.chunks[0]):
            self.end(rank)  # it has sent what it had, or has no part

    def end(self, rank, is_right=True):
        node = self.nodes[rank]
        for fill in node.chunks[0]:
            if fill.target == rank:
                expert = self.sent.pop((node.number, rank))
                self.write(node, fill, expert if is_right else GARBAGE)
        self.count_end(node, is_right)

    def write(self, node, fill, expert):
        self.memory[node.rank] = expert

    def count_end(self, node, is_right):
        node.chunks, node.has_begun = node.chunks[1:], False
        node.failed += not is_right
        node.ended += 1

    def fail(self, rank):
        self.failures -= 1
        self.end(rank, is_right=False)

    def cut(self, first):
        """Only the ranks from ``first`` on act on a round, what is on its way is lost, and all go on anew."""
        self.cuts -= 1
        for rank in range(len(self.nodes)):
            self.tell(rank)
        self.round(False)
        for rank in range(first, len(self.nodes)):
            self.act(rank)
        self.sent, self.headers, self.aimed = {}, None, None
        for node in self.nodes:
            node.is_acting = False
            while node.chunks:
                for fill in node.chunks[0]:
                    if fill.target == node.rank:
                        self.write(node, fill, GARBAGE)
                self.count_end(node, False)
            node.mover.call_off()  # as the state that is lost does
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            links = memory_links(len(self.nodes))
            list(pool.map(lambda node, link: node.mover.rejoin(link), self.nodes, links))


@dataclass(frozen=True)
class Explored:
    states: int
    has_arrived: bool  # some order reached the last goal on every rank
    found: str | None  # what was wrong first


def explore(goals, *, failures=0, call_offs=0, depth=1, in_one=False, node=Node, **budget):
    """Every state of such ranks, until something is wrong."""
    nodes = [node(rank, depth) for rank in range(RANKS)]
    first = World(nodes, list(START), tuple(goals), failures, call_offs, **budget)

    def is_there(world):
        return all(each.mover.ledger.placement == placement(goals[-1]) for each in world.nodes)

    return explore_from(first, in_one, is_there)


def explore_from(first, in_one, is_there):
    """Every state that can be reached from ``first``, breadth first, until something is wrong."""
    seen, waiting, has_arrived = {hash(first.key())}, deque([first]), False
    while waiting:
        world = waiting.popleft()
        if world.is_over():
            has_arrived |= is_there(world)
            continue
        for name, arguments in world.happenings(in_one):
            after = world.clone()
            getattr(after, name)(*arguments)
            if (wrong := after.wrong()) is not None:
                return Explored(len(seen), has_arrived, wrong)
            key = hash(after.key())
            if key not in seen:
                seen.add(key)
                waiting.append(after)
    return Explored(len(seen), has_arrived, None)
