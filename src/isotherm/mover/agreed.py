"""Layers whose slots cannot be retired: weights staged, and taken up by all ranks in the same step.

Where a layer has no redundant slot, or every rank maps every token, tables may not differ between ranks for a
single step. A batch of slots is *staged*: the new weights arrive in buffers beside the slots. When every rank
has them, tables and weights of the next epoch are *offered*: each rank lends the number of the newest epoch
that lies ready with it as its *word* to an exchange that the engine makes in each step anyway. The least word
of all ranks is the epoch that all have, and all read it in the same step: they copy their buffers into their
slots and put the tables in force before that step's work, in the order of the engine's stream.

Nothing that was offered is taken back, since another rank may have read already that all have it. So a rank
that missed an exchange, because the ranks of the group changed in the middle of it, goes forward to the
greatest epoch that any of them has in force: it has that epoch's weights and tables too, or nobody could have
read its number.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isotherm.arrays import FloatArray, Int32Array, frozen
from isotherm.mover.ledger import Ledger, Phase, Rules, live_shares, written
from isotherm.mover.schedule import Fill, schedule_fills
from isotherm.placement import EMPTY, Placement, Refill
from isotherm.topology import Topology


def accept(ledger: Ledger, goal: Placement, shares_LP: FloatArray, rules: Rules, step: int) -> Ledger:
    """Begins the way to ``goal``, from a ledger that is settled. Shares alone are offered at once.

    Raises:
        ValueError: the goal empties a slot.
    """
    assert ledger.phase is Phase.SETTLED, "what is under way is called off first"
    emptied = np.argwhere((goal.slot_to_expert == EMPTY) & (ledger.content != EMPTY))
    if len(emptied):
        layer, slot = emptied[0].tolist()
        raise ValueError(f"the plan empties slot {slot} of layer {layer}: give each slot an expert")
    aimed = replace(ledger, goal=goal, goal_shares=frozen(shares_LP, np.float64))
    if goal == ledger.placement:
        return _offer(aimed, aimed.goal_shares, step)
    return _stage_batch(aimed, rules, step)


def staged(ledger: Ledger, rules: Rules, step: int) -> Ledger:
    """The batch lies in the buffers of every rank: offers it. ``content`` is what slots will hold."""
    assert ledger.phase is Phase.STAGING
    content_LP, version_LP = written(ledger, None)
    after = replace(ledger, content=content_LP, version=version_LP)
    is_there = after.placement == ledger.goal
    return _offer(
        after, ledger.goal_shares if is_there else live_shares(content_LP, ledger.experts, rules), step
    )


def taken(ledger: Ledger, rules: Rules, step: int) -> Ledger:
    """Every rank has finished a step with the tables of this epoch, so buffers are free and slots hold what
    the ledger says: stages the next batch."""
    assert ledger.phase is Phase.AGREEING
    if ledger.placement == ledger.goal:
        return replace(ledger, goal=None, phase=Phase.SETTLED, batch=(), since_step=step)
    return _stage_batch(ledger, rules, step)


def called_off(ledger: Ledger, step: int) -> Ledger:
    """The plan in progress is given up. What is being staged is dropped; what was offered is in force, or
    will be, and is the last of the plan."""
    assert ledger.phase in (Phase.STAGING, Phase.AGREEING)
    if ledger.phase is Phase.AGREEING:
        return replace(ledger, goal=ledger.placement, goal_shares=ledger.shares)
    return replace(
        ledger, goal=None, goal_shares=ledger.shares, phase=Phase.SETTLED, batch=(), since_step=step
    )


def heard(epoch: int, offered: int, word: int) -> int:
    """The epoch in force from this step on, for a rank with ``epoch`` in force and ``offered`` ready.

    ``word`` is the least of the words that all ranks lent to one exchange, or, after a change of the group's
    ranks, the greatest of their epochs. Older words change nothing.

    Raises:
        ValueError: the word names tables that this rank never offered.
    """
    if word > offered:
        raise ValueError(
            f"step_word returned {word}, and this rank has lent no more than {offered}: return the least of "
            "the words that all ranks lent to one exchange"
        )
    return max(epoch, word)


def _offer(ledger: Ledger, shares_LP: FloatArray, step: int) -> Ledger:
    return replace(ledger, shares=shares_LP, epoch=ledger.epoch + 1, phase=Phase.AGREEING, since_step=step)


def _stage_batch(ledger: Ledger, rules: Rules, step: int) -> Ledger:
    assert ledger.goal is not None, "it was accepted"
    goal_LP = ledger.goal.slot_to_expert
    refills = next_exchange(ledger.content, goal_LP, ledger.experts, rules)
    fills = schedule_fills(refills, ledger.content, rules.topology)
    batch = _in_buffers(fills, rules.topology)
    return replace(ledger, phase=Phase.STAGING, batch=batch, since_step=step)


def _in_buffers(fills: tuple[Fill, ...], topology: Topology) -> tuple[Fill, ...]:
    """Each fill in a buffer of its own; those that take on what arrived earlier read it from there."""
    used = [0] * topology.ranks
    buffers: dict[tuple[int, int, int], int] = {}
    placed: list[Fill] = []
    for fill in fills:
        rank = topology.rank_of(fill.target)
        source_buffer = buffers.get((fill.layer, fill.source, fill.expert), -1)
        buffers[fill.layer, fill.target, fill.expert] = used[rank]
        placed.append(replace(fill, buffer=used[rank], source_buffer=source_buffer))
        used[rank] += 1
    return tuple(placed)


def next_exchange(
    content_LP: Int32Array, goal_LP: Int32Array, experts: int, rules: Rules
) -> tuple[Refill, ...]:
    """The slots that change together next on the way from ``content`` to ``goal``; empty when there.

    Every expert has a slot afterwards. At least one more slot holds what the goal wants, and a slot that does
    is left alone, so every goal is reached.
    """
    room = _Room(rules)
    chosen: list[Refill] = []
    for layer in np.flatnonzero((content_LP != goal_LP).any(axis=1)).tolist():
        if room.is_spent:
            break
        row = _Row(content_LP[layer], goal_LP[layer], experts, room)
        for slot, expert in row.changes():
            source = int(np.flatnonzero(content_LP[layer] == expert)[0])
            chosen.append(Refill(layer, slot, expert, source))
    return tuple(chosen)


class _Room:
    """What a batch may still hold: of all ranks, and in the buffers of each."""

    def __init__(self, rules: Rules) -> None:
        self._topology = rules.topology
        assert rules.buffers >= 2, "two slots of one rank are the least that can swap"
        self._left = max(rules.limit, 2)
        self._buffers = [rules.buffers] * rules.topology.ranks

    @property
    def is_spent(self) -> bool:
        """Whether nothing more fits: layers that are far from their goals take long to look through."""
        return not self._left

    def try_take(self, slots: list[int]) -> bool:
        """Takes room for all of these slots, or none."""
        ranks = [self._topology.rank_of(slot) for slot in slots]
        if len(slots) > self._left or any(self._buffers[rank] < ranks.count(rank) for rank in ranks):
            return False
        self._left -= len(slots)
        for rank in ranks:
            self._buffers[rank] -= 1
        return True


class _Row:
    """One layer, as it will be when the chosen slots have changed."""

    def __init__(self, content_P: Int32Array, goal_P: Int32Array, experts: int, room: _Room) -> None:
        self._after: list[int] = content_P.tolist()
        self._goal: list[int] = goal_P.tolist()
        self._room = room
        self._replicas_E = np.bincount(content_P[content_P != EMPTY], minlength=experts)
        self._chosen: dict[int, int] = {}  # slot -> expert

    def changes(self) -> list[tuple[int, int]]:
        """(slot, expert) of as many slots as there is room for."""
        while any(self._try_single(slot) for slot in self._pending()):
            pass
        # Each that is left holds the last replica of an expert that another of them wants: they are cycles,
        # unless the room was too small.
        for slot in self._pending():
            if self._room.is_spent:
                break
            cycle = self._cycle(slot)
            if len(cycle) > 1 and not (self._is_closed(cycle) and self._try(self._wishes(cycle))):
                self._try({slot: self._goal[slot], cycle[1]: self._after[slot]})
        return list(self._chosen.items())

    def _pending(self) -> list[int]:
        pairs = enumerate(zip(self._after, self._goal, strict=True))
        return [slot for slot, (now, goal) in pairs if now != goal != EMPTY]

    def _try_single(self, slot: int) -> bool:
        """A slot that is empty, or whose expert has another replica."""
        lost = self._after[slot]
        return (lost == EMPTY or self._replicas_E[lost] > 1) and self._try({slot: self._goal[slot]})

    def _cycle(self, first: int) -> list[int]:
        """The slots from ``first`` on, each followed by the one that holds what it wants, as far as these
        have still to change; empty where ``first`` has not."""
        holder = {self._after[slot]: slot for slot in self._pending() if slot not in self._chosen}
        cycle = [first] if first in holder.values() else []
        while cycle and (slot := holder.get(self._goal[cycle[-1]], first)) not in cycle:
            cycle.append(slot)
        return cycle

    def _is_closed(self, cycle: list[int]) -> bool:
        """Whether the last slot wants what the first one holds."""
        return self._goal[cycle[-1]] == self._after[cycle[0]]

    def _wishes(self, cycle: list[int]) -> dict[int, int]:
        return {slot: self._goal[slot] for slot in cycle}

    def _try(self, changes: dict[int, int]) -> bool:
        if self._chosen.keys() & changes.keys() or not self._room.try_take(list(changes)):
            return False
        for slot, expert in changes.items():
            if self._after[slot] != EMPTY:
                self._replicas_E[self._after[slot]] -= 1
            self._replicas_E[expert] += 1
            self._after[slot] = expert
        self._chosen |= changes
        return True
