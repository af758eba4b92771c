"""The split of one layer's tokens under which the fewest pairs cross nodes, with no rank above a load.

Dispatch fills what a node's replicas get of an expert with the node's own tokens first, so that of the ``Y``
that a node gets, where ``h`` are its own, ``min(Y, h)`` stay near. That is a flow of least cost: tokens go
from rank to rank over replicas that both hold, and one costs a pair where it leaves the node that owns it,
and saves one where it comes to that node. Every node first gets its own; what then is above the load is sent
along cheapest paths to ranks with room, the shortest of those. Source: successive shortest paths (Jewell
1958; Busacker and Gowen 1960), with the queue of Pape (1974) for arcs of negative cost, of which there is
never a cycle.

Heat comes in units of the mean load of a rank.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel

EPSILON = 1e-10
"""Less than this of the mean load is rounding."""
TOLERANCE = 1e-6
"""A peak this far above what is allowed is rounding, as a part of it."""
PAIR = 1 << 20
"""The length of an arc that costs a pair; every arc is 1 longer, so that of equally dear paths the shortest
is taken."""
FAR = 1 << 60
PATHS = 64
"""At most so many paths for each rank: what is above the load then stays there."""
VISITS = 64
"""At most so many ranks are looked at for each rank while a path is sought: rounding may make a cycle that
seems to cost less than nothing."""


class Split(NamedTuple):
    """One layer and where its tokens go. The slots of expert ``e`` are, ascending,
    ``slot_P[begin_E1[e] : begin_E1[e + 1]]``. ``got_NE`` is what the slots of a node get. The last five are
    scratch of `find_path`."""

    slot_expert_P: Int64Array
    source_NE: FloatArray
    begin_E1: Int64Array
    slot_P: Int64Array
    tokens_P: FloatArray
    got_NE: FloatArray
    load_G: FloatArray
    length_G: Int64Array
    from_slot_G: Int64Array
    to_slot_G: Int64Array
    queue_G: Int64Array
    queued_G: Int64Array


@kernel
def send_near(
    slot_expert_P: Int64Array, source_NE: FloatArray, ranks: int, level: float, tokens_P: FloatArray
) -> tuple[float, float]:
    """Writes down what each slot gets, with no rank above ``level`` as far as can be. Returns the highest
    load, and the pairs that stay near."""
    split = new_split(slot_expert_P, source_NE, ranks)
    peak = level_down(split, level)
    tokens_P[:] = split.tokens_P
    return peak, near_pairs(split)


@kernel
def new_split(slot_expert_P: Int64Array, source_NE: FloatArray, ranks: int) -> Split:
    """The layer with all tokens near that can be: each node's own are dealt out evenly over its replicas, and
    those of nodes without any over all replicas."""
    experts, slots, nodes = source_NE.shape[1], len(slot_expert_P), len(source_NE)
    begin_E1 = np.zeros(experts + 1, np.int64)
    for expert in slot_expert_P:
        if expert >= 0:
            begin_E1[expert + 1] += 1
    for expert in range(experts):
        begin_E1[expert + 1] += begin_E1[expert]
    slot_P, place_E = np.empty(begin_E1[experts], np.int64), begin_E1[:experts].copy()
    for slot in range(slots):
        expert = slot_expert_P[slot]
        if expert >= 0:
            slot_P[place_E[expert]] = slot
            place_E[expert] += 1
    split = Split(
        slot_expert_P,
        source_NE,
        begin_E1,
        slot_P,
        np.zeros(slots),
        np.zeros((nodes, experts)),
        np.zeros(ranks),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
        np.zeros(ranks, np.int64),
    )
    for expert in range(experts):
        deal_near(split, expert)
    add_up(split)
    return split


@kernel
def deal_near(split: Split, expert: int) -> None:
    first, last, away = split.begin_E1[expert], split.begin_E1[expert + 1], 0.0
    per_node = len(split.slot_expert_P) // len(split.source_NE)
    for node in range(len(split.source_NE)):
        own, n = split.source_NE[node, expert], 0
        for i in range(first, last):
            n += split.slot_P[i] // per_node == node
        if n == 0:
            away += own
        for i in range(first, last):
            if split.slot_P[i] // per_node == node:
                split.tokens_P[split.slot_P[i]] = own / n
    for i in range(first, last):
        split.tokens_P[split.slot_P[i]] += away / (last - first)


@kernel
def add_up(split: Split) -> None:
    """Loads, and what nodes get, from the tokens of all slots."""
    slots, ranks, nodes = len(split.slot_expert_P), len(split.load_G), len(split.source_NE)
    split.load_G[:] = 0.0
    split.got_NE[:] = 0.0
    for slot in range(slots):
        expert = split.slot_expert_P[slot]
        if expert >= 0:
            split.load_G[slot // (slots // ranks)] += split.tokens_P[slot]
            split.got_NE[slot // (slots // nodes), expert] += split.tokens_P[slot]


@kernel
def level_down(split: Split, level: float) -> float:
    """Sends what ranks have above ``level`` to others, as cheaply as can be. Returns the highest load left:
    above ``level`` only where the placement allows no better, or it would take too many paths."""
    for _ in range(PATHS * len(split.load_G)):
        sink = find_path(split, level)
        if sink < 0:
            break
        push(split, sink, level)
    add_up(split)
    return float(split.load_G.max())


@kernel
def find_path(split: Split, level: float) -> int:
    """The rank with room to which a path from one above ``level`` is shortest, or -1. ``from_slot_G`` and
    ``to_slot_G`` lead back from it, to a rank with ``from_slot_G`` -1."""
    ranks, head, n, visits = len(split.load_G), 0, 0, 0
    size = len(split.slot_expert_P) // ranks
    for rank in range(ranks):
        split.length_G[rank], split.queued_G[rank] = FAR, 0
        if split.load_G[rank] > level + EPSILON:
            split.length_G[rank], split.from_slot_G[rank] = 0, -1
            split.queue_G[n], split.queued_G[rank] = rank, 1
            n += 1
    while n > 0:
        visits += 1
        if visits > VISITS * ranks:
            return -1
        rank = split.queue_G[head]
        head, n, split.queued_G[rank] = (head + 1) % ranks, n - 1, 0
        for slot in range(rank * size, (rank + 1) * size):
            expert = split.slot_expert_P[slot]
            if expert < 0 or split.tokens_P[slot] <= EPSILON:
                continue
            for i in range(split.begin_E1[expert], split.begin_E1[expert + 1]):
                to = split.slot_P[i]
                other = to // size
                length = split.length_G[rank] + arc_length(split, expert, slot, to)
                if other == rank or length >= split.length_G[other]:
                    continue
                split.length_G[other] = length
                split.from_slot_G[other], split.to_slot_G[other] = slot, to
                if split.queued_G[other] == 0:
                    split.queue_G[(head + n) % ranks], split.queued_G[other] = other, 1
                    n += 1
    best = -1
    for rank in range(ranks):
        is_nearer = best < 0 or split.length_G[rank] < split.length_G[best]
        if split.load_G[rank] < level - EPSILON and split.length_G[rank] < FAR and is_nearer:
            best = rank
    return best


@kernel
def arc_length(split: Split, expert: int, slot: int, to: int) -> int:
    per_node, length = len(split.slot_expert_P) // len(split.source_NE), 1
    a, b = slot // per_node, to // per_node
    if a != b:
        if split.got_NE[a, expert] <= split.source_NE[a, expert] + EPSILON:
            length += PAIR
        if split.got_NE[b, expert] < split.source_NE[b, expert] - EPSILON:
            length -= PAIR
    return length


@kernel
def arc_room(split: Split, slot: int, to: int) -> float:
    """What the arc takes at one cost."""
    per_node, expert = len(split.slot_expert_P) // len(split.source_NE), split.slot_expert_P[slot]
    a, b = slot // per_node, to // per_node
    room: float = split.tokens_P[slot]
    if a != b:
        surplus = split.got_NE[a, expert] - split.source_NE[a, expert]
        if surplus > EPSILON:
            room = min(room, surplus)
        if split.source_NE[b, expert] - split.got_NE[b, expert] > EPSILON:
            room = min(room, split.source_NE[b, expert] - split.got_NE[b, expert])
    return room


@kernel
def push(split: Split, sink: int, level: float) -> None:
    """Sends along the path to ``sink`` what neither end, nor a cost on the way, forbids."""
    size, rank, amount = len(split.slot_expert_P) // len(split.load_G), sink, level - split.load_G[sink]
    while split.from_slot_G[rank] >= 0:
        slot = split.from_slot_G[rank]
        # An expert that is passed on twice may do so only within its part.
        amount = min(amount, arc_room(split, slot, split.to_slot_G[rank]) / times_on_path(split, sink, slot))
        rank = slot // size
    surplus = split.load_G[rank] - level
    amount = min(amount, surplus)
    split.load_G[rank] = level if amount >= surplus else split.load_G[rank] - amount
    room = level - split.load_G[sink]
    split.load_G[sink] = level if amount >= room else split.load_G[sink] + amount
    per_node, rank = len(split.slot_expert_P) // len(split.source_NE), sink
    while split.from_slot_G[rank] >= 0:
        slot, to = split.from_slot_G[rank], split.to_slot_G[rank]
        expert = split.slot_expert_P[slot]
        split.tokens_P[slot] -= amount
        split.tokens_P[to] += amount
        split.got_NE[slot // per_node, expert] -= amount
        split.got_NE[to // per_node, expert] += amount
        rank = slot // size


@kernel
def times_on_path(split: Split, sink: int, slot: int) -> int:
    """How many arcs of the path to ``sink`` carry the expert of ``slot``."""
    size, rank, n = len(split.slot_expert_P) // len(split.load_G), sink, 0
    while split.from_slot_G[rank] >= 0:
        n += split.slot_expert_P[split.from_slot_G[rank]] == split.slot_expert_P[slot]
        rank = split.from_slot_G[rank] // size
    return n


@kernel
def near_pairs(split: Split) -> float:
    """Pairs that stay on the node that owns them."""
    near = 0.0
    for node in range(len(split.source_NE)):
        for expert in range(split.source_NE.shape[1]):
            near += min(split.got_NE[node, expert], split.source_NE[node, expert])
    return near
