"""The splits of engines that know no shares, and a search under them.

Such a split hangs on where an expert's replicas are, not on the heat: a replica may be sent next to nothing
because another is nearer to most ranks. Two slots that trade places change what all replicas of their two
experts are sent.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel

EVEN, NEAREST, BY_RANK = 0, 1, 2

LEAST_GAIN = 1e-4
"""A change must lower the potential by this part of it."""


@kernel
def split_expert(
    split: int, rank_X: Int64Array, n: int, source_N: FloatArray, ranks: int, part_X: FloatArray
) -> None:
    """Writes to ``part_X`` the part of an expert's tokens that each of its replicas is sent, which are on
    ``rank_X[:n]`` in ascending order of their slots. ``source_N`` is the part that comes from each node."""
    if split == EVEN or n == 1:
        part_X[:n] = 1.0 / n
        return
    part_X[:n] = 0.0
    per_node, anywhere = ranks // len(source_N), 0.0
    for source in range(ranks):
        node, near = source // per_node, -1
        if split == BY_RANK:
            near = source % n
        else:
            for i in range(n):
                if rank_X[i] == source:
                    near = i
                    break
                if near < 0 and rank_X[i] // per_node == node:
                    near = i
        part = source_N[node] / per_node
        if near >= 0:
            part_X[near] += part
        else:
            anywhere += part
    for i in range(n):
        part_X[i] += anywhere / n


class Served(NamedTuple):
    """One layer as an engine serves it; heat in units of the mean load of a rank. The slots of expert ``e``
    are, ascending, ``slots_EP[e, :count_E[e]]``. The last two are scratch."""

    slot_expert_P: Int64Array
    heat_E: FloatArray
    source_EN: FloatArray
    split: int
    slots_EP: Int64Array
    count_E: Int64Array
    load_G: FloatArray
    rank_X: Int64Array
    part_X: FloatArray


@kernel
def new_served(
    slot_expert_P: Int64Array, heat_E: FloatArray, source_EN: FloatArray, ranks: int, split: int
) -> Served:
    slots, experts = len(slot_expert_P), len(heat_E)
    served = Served(
        slot_expert_P,
        heat_E,
        source_EN,
        split,
        np.zeros((experts, slots), np.int64),
        np.zeros(experts, np.int64),
        np.zeros(ranks),
        np.zeros(slots, np.int64),
        np.zeros(slots),
    )
    for slot in range(slots):
        expert = slot_expert_P[slot]
        if expert >= 0:
            served.slots_EP[expert, served.count_E[expert]] = slot
            served.count_E[expert] += 1
    for expert in range(experts):
        carry(served, expert, 1.0, served.load_G)
    return served


@kernel
def carry(served: Served, expert: int, sign: float, load_G: FloatArray) -> None:
    """Adds what the ranks are sent of an expert to ``load_G``, or with ``sign`` -1 takes it away."""
    n, size = served.count_E[expert], len(served.slot_expert_P) // len(load_G)
    for i in range(n):
        served.rank_X[i] = served.slots_EP[expert, i] // size
    split_expert(served.split, served.rank_X, n, served.source_EN[expert], len(load_G), served.part_X)
    for i in range(n):
        load_G[served.rank_X[i]] += sign * served.heat_E[expert] * served.part_X[i]


@kernel
def put(served: Served, slot: int, expert: int) -> None:
    """Gives a slot to another expert, loads aside."""
    old = served.slot_expert_P[slot]
    if old >= 0:
        row, i = served.slots_EP[old], 0
        served.count_E[old] -= 1
        while row[i] != slot:
            i += 1
        for j in range(i, served.count_E[old]):
            row[j] = row[j + 1]
    row, i = served.slots_EP[expert], served.count_E[expert]
    served.count_E[expert] += 1
    while i > 0 and row[i - 1] > slot:
        row[i] = row[i - 1]
        i -= 1
    row[i] = slot
    served.slot_expert_P[slot] = expert


@kernel
def potential(load_G: FloatArray) -> float:
    """The loads' sixteenth powers added up: led by the hottest ranks, and yet it tells of the others."""
    total = 0.0
    for load in load_G:
        square = load * load
        fourth = square * square
        eighth = fourth * fourth
        total += eighth * eighth
    return total


@kernel
def holds_expert(served: Served, rank: int, expert: int) -> bool:
    size, found = len(served.slot_expert_P) // len(served.load_G), False
    for i in range(served.count_E[expert]):
        found = found or served.slots_EP[expert, i] // size == rank
    return found


@kernel
def try_change(served: Served, p: int, e: int, q: int, f: int, trial_G: FloatArray) -> float:
    """The potential with expert ``e`` in slot ``p`` and, unless ``q`` is -1, ``f`` in ``q``; leaves its loads
    in ``trial_G`` and all else as it was."""
    a, b = served.slot_expert_P[p], e
    trial_G[:] = served.load_G
    carry(served, a, -1.0, trial_G)
    carry(served, b, -1.0, trial_G)
    put(served, p, e)
    if q >= 0:
        put(served, q, f)
    carry(served, a, 1.0, trial_G)
    carry(served, b, 1.0, trial_G)
    value = potential(trial_G)
    put(served, p, a)
    if q >= 0:
        put(served, q, b)
    return value


@kernel
def search_served(served: Served, target: float, max_changes: int) -> None:
    """Trades slots of the hottest rank with those of others, and gives redundant slots to its experts, while
    that lowers the potential and a rank is above ``target``. At most ``max_changes`` slots change."""
    changes, trial_G = 0, np.zeros(len(served.load_G))
    change_4 = np.zeros(4, np.int64)
    while True:
        hot, found = int(np.argmax(served.load_G)), False
        if served.load_G[hot] <= target:
            return
        for other in np.argsort(served.load_G, kind="mergesort"):
            if served.load_G[other] < served.load_G[hot]:
                found = find_change(served, hot, other, max_changes - changes, trial_G, change_4)
            if found:
                break
        if not found:
            return
        p, e, q, f = change_4[0], change_4[1], change_4[2], change_4[3]
        try_change(served, p, e, q, f, trial_G)
        served.load_G[:] = trial_G
        put(served, p, e)
        changes += 1
        if q >= 0:
            put(served, q, f)
            changes += 1


@kernel
def find_change(
    served: Served, hot: int, other: int, room: int, trial_G: FloatArray, change_4: Int64Array
) -> bool:
    """Whether a trade of slots between two ranks, or an expert of the hot one more on the other, lowers the
    potential enough; writes the best to ``change_4``, as `try_change` takes it."""
    size, found = len(served.slot_expert_P) // len(served.load_G), False
    best = potential(served.load_G) * (1 - LEAST_GAIN)
    for q in range(other * size, (other + 1) * size):
        f = served.slot_expert_P[q]
        tradable = room >= 2 and not holds_expert(served, hot, f)
        for p in range(hot * size, (hot + 1) * size):
            e = served.slot_expert_P[p]
            if holds_expert(served, other, e):
                continue
            if room >= 1 and served.count_E[f] > 1:
                value = try_change(served, q, e, -1, -1, trial_G)
                if value < best:
                    best, found = value, True
                    change_4[0], change_4[1], change_4[2], change_4[3] = q, e, -1, -1
            if tradable:
                value = try_change(served, p, f, q, e, trial_G)
                if value < best:
                    best, found = value, True
                    change_4[0], change_4[1], change_4[2], change_4[3] = p, f, q, e
    return found


@kernel
def split_layers(
    slot_expert_LP: Int64Array, ranks: int, split: int, source_LEN: FloatArray, shares_LP: FloatArray
) -> None:
    """Writes the part of its expert's tokens that each slot is sent to ``shares_LP``, which is all zero."""
    size = slot_expert_LP.shape[1] // ranks
    for layer in range(len(slot_expert_LP)):
        served = new_served(
            slot_expert_LP[layer], np.ones(source_LEN.shape[1]), source_LEN[layer], ranks, split
        )
        for expert in range(source_LEN.shape[1]):
            n = served.count_E[expert]
            for i in range(n):
                served.rank_X[i] = served.slots_EP[expert, i] // size
            split_expert(split, served.rank_X, n, source_LEN[layer, expert], ranks, served.part_X)
            for i in range(n):
                shares_LP[layer, served.slots_EP[expert, i]] = served.part_X[i]
