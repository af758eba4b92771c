"""Ranks with real movers that take up tables by the step word, and everything that may happen to them.

Each rank has one slot, and no expert has two. The host of a rank begins steps up to ``depth`` ahead of its
device: at the beginning of step ``s`` it lends its word to the exchange that the devices make in step ``s``,
and reads that of step ``s - 1 - depth``, which its device has finished. A device finishes a step when the
others have come to it, since tokens go from each to each. Copies into slots happen in the order of the
device. Once, steps may break off, as when the ranks of the group change: hosts are then further or less far,
some have read an exchange that others have not, and all go on together.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from model import GARBAGE, Node, Tables, World, explore_from

from isotherm.mover.agreed import heard
from isotherm.mover.ledger import Phase, Rules
from isotherm.placement import Placement, Rounds
from isotherm.topology import Topology


def row(content):
    return Placement(np.array([content], np.int32), len(content))


class WordNode(Node):
    """A rank, its host and its device."""

    def __init__(self, rank, depth, start):
        self.start_at = row(start)
        topology = Topology(ranks=len(start), slots_per_rank=1)
        self.rules = Rules(topology, Placement.even_shares, by_word=True, limit=2, buffers=2)
        super().__init__(rank, 0)
        self.tables = self.staged  # in force on the host
        self.left = ()  # fills that came with what was offered
        self.queue = ()  # (tables, copies) of steps that the device has still to finish
        self.step = 0  # that the host begins next
        self.buffers = (GARBAGE,) * 2

    def publish(self, ledger):
        self.staged = Tables.of(ledger)
        self.left = tuple(fill for fill in ledger.batch if fill.target == self.rank)

    def take(self, word):
        """Begins a step; what it is to copy first."""
        if heard(self.tables.epoch, self.staged.epoch, word) == self.tables.epoch:
            return ()
        self.tables, copies, self.left = self.staged, self.left, ()
        return copies

    def key(self):
        return (*super().key(), self.tables, self.left, self.queue, self.buffers)


@dataclass
class WordWorld(World):
    """``breaks`` may still come. ``floor``: after one, what is read until exchanges made since can be."""

    depth: int = 0
    breaks: int = 0
    words: dict = field(default_factory=dict)  # (step, rank) -> word lent
    epochs: dict = field(default_factory=dict)  # step -> epoch in force on the rank that began it first
    floor: tuple[int, int] = (0, 0)  # (first step, epoch)
    error: str | None = None

    def clone(self):
        return replace(super().clone(), words=dict(self.words), epochs=dict(self.epochs))

    def key(self):
        base = min(node.step for node in self.nodes)
        near = [(step - base, rank, word) for (step, rank), word in self.words.items()]
        epochs = [(step - base, epoch) for step, epoch in self.epochs.items()]
        steps = tuple(node.step - base for node in self.nodes)
        floor = (max(self.floor[0] - base, -1 - self.depth), self.floor[1])
        return (*super().key(), steps, tuple(sorted(near)), tuple(sorted(epochs)), floor, self.breaks)

    def wrong(self):
        return self.error

    def happenings(self, in_one):
        for rank, node in enumerate(self.nodes):
            if len(node.queue) <= self.depth and self.is_moving():
                yield "begin_step", (rank,)
            if node.queue and self.others_came(node):
                yield "finish", (rank,)
        if self.breaks:
            yield "break_off", ()
        yield from (each for each in super().happenings(in_one) if each[0] != "step")

    def is_moving(self):
        """Whether a step could change anything."""
        nodes = self.nodes
        return len({each.epoch for node in nodes for each in (node.staged, node.tables)}) > 1 or any(
            node.epoch != node.staged.epoch for node in nodes
        )

    def others_came(self, node):
        """Whether all have begun the step that the device of ``node`` is in, and finished those before."""
        step = node.step - len(node.queue)
        return all(each.step > step and each.step - len(each.queue) >= step for each in self.nodes)

    # -- what may happen ------------------------------------------------------------------------------

    def begin_step(self, rank):
        node = self.nodes[rank]
        self.words[node.step, rank] = self.word_of(node)
        copies = node.take(self.read(node))
        node.queue = (*node.queue, (node.tables, copies))
        first = self.epochs.setdefault(node.step, node.tables.epoch)
        if first != node.tables.epoch:
            self.error = f"step {node.step}: epoch {first} on one rank, {node.tables.epoch} on rank {rank}"
        node.step += 1
        base = min(each.step for each in self.nodes) - 1 - self.depth
        self.words = {key: word for key, word in self.words.items() if key[0] >= base}
        self.epochs = {step: epoch for step, epoch in self.epochs.items() if step >= base}

    def word_of(self, node):
        return node.staged.epoch

    def read(self, node):
        """The least word of the exchange that the host can read now, on every rank in the same step."""
        step = node.step - 1 - self.depth
        if step < self.floor[0]:
            return self.floor[1]
        return min(self.words[step, rank] for rank in range(len(self.nodes)))

    def finish(self, rank):
        node = self.nodes[rank]
        (tables, copies), *later = node.queue
        node.queue, node.epoch = tuple(later), tables.epoch
        self.copy(node, copies)
        if self.memory[rank] != tables.live_P[rank]:
            self.error = f"by {tables} tokens come to rank {rank}, which holds {self.memory[rank]}"

    def copy(self, node, copies):
        for fill in copies:
            self.memory[node.rank] = node.buffers[fill.buffer]

    def break_off(self):
        """What was enqueued runs to its end, steps are not finished, and all go on from one step."""
        self.breaks -= 1
        for node in self.nodes:
            for _, copies in node.queue:
                self.copy(node, copies)
            node.queue = ()
        step = max(node.step for node in self.nodes)
        for node in self.nodes:
            node.step = step
        self.words, self.epochs = {}, {}
        self.floor = (step, self.greatest_epoch())

    def greatest_epoch(self):
        return max(node.tables.epoch for node in self.nodes)

    def aim(self, node):
        goal = row(self.aimed)
        if node.mover.ledger.phase is not Phase.AGREEING:  # then it would be refused
            node.mover.aim(goal, goal.even_shares(), Rounds())

    def write(self, node, fill, expert):
        buffers = list(node.buffers)
        buffers[fill.buffer] = expert
        node.buffers = tuple(buffers)


def explore_words(start, goals, *, depth, in_one=True, world=WordWorld, node=WordNode, **budget):
    """Every state of ranks whose slots hold ``start``, and are to hold each of ``goals`` in turn."""
    nodes = [node(rank, depth, start) for rank in range(len(start))]
    amounts = {"failures": 0, "call_offs": 0, **budget}
    first = world(nodes, list(start), tuple(goals), depth=depth, **amounts)

    def is_there(last):
        return all(each.mover.ledger.placement == row(goals[-1]) for each in last.nodes)

    return explore_from(first, in_one, is_there)
