"""The exact split of one layer's tokens: no other lowers the hottest rank, nor the next, and so on.

Where tokens can flow from rank to rank over the replicas they share, all ranks are brought to the mean of
their loads by shortest augmenting paths. Where that stops, the ranks that the surplus reaches can give
nothing to the others: the two parts are levelled each for itself. Source: the decomposition algorithm for
lexicographically optimal flows (Fujishige 1980; Megiddo 1974), with the paths of Edmonds and Karp (1972).
"""

from __future__ import annotations

from isotherm.jit import kernel
from isotherm.planner.layer import Layer, has_one_slot

EPSILON = 1e-11
"""A rank within this of the level is on it, in units of the mean load."""


@kernel
def level_out(layer: Layer) -> None:
    """Moves tokens between replicas until the loads are the lowest there are, hottest first. Tokens and
    loads must add up before, and do so after."""
    walk, ranks = layer.walk, len(layer.load_G)
    list_shared(layer)
    list_groups(layer)
    first = 0
    while first < ranks:
        last, total = walk.end_G[first], 0.0
        for i in range(first, last):
            total += layer.load_G[walk.order_G[i]]
        level = total / (last - first)
        while last - first > 1:
            sink = find_path(layer, first, last, level)
            if sink < 0:
                break
            push(layer, sink, level)
        middle = divide(layer, first, last) if last - first > 1 else last
        if middle == last:
            first = last
    split_within_ranks(layer)


@kernel
def list_shared(layer: Layer) -> None:
    """Lists the slots that tokens can leave for another: few, and the walks pass by them again and again."""
    walk, n = layer.walk, 0
    for rank in range(len(layer.load_G)):
        for slot in range(rank * layer.slots_per_rank, (rank + 1) * layer.slots_per_rank):
            expert = layer.slot_expert_P[slot]
            if expert >= 0 and layer.heat_E[expert] > 0.0 and not has_one_slot(layer, expert):
                walk.shared_P[n] = slot
                n += 1
        walk.shared_G1[rank + 1] = n


@kernel
def list_groups(layer: Layer) -> None:
    """Lists in ``order_G`` the ranks that share experts side by side. A group is named by the place where
    it begins, and ``end_G`` says there where it ends."""
    walk = layer.walk
    walk.group_G[:] = -1
    n = 0
    for begin in range(len(walk.group_G)):
        if walk.group_G[begin] >= 0:
            continue
        first, i = n, n
        walk.group_G[begin], walk.order_G[n] = first, begin
        n += 1
        while i < n:
            rank = walk.order_G[i]
            i += 1
            for k in range(walk.shared_G1[rank], walk.shared_G1[rank + 1]):
                expert = layer.slot_expert_P[walk.shared_P[k]]
                for j in range(layer.start_E1[expert], layer.start_E1[expert + 1]):
                    other = layer.rank_P[layer.slots_P[j]]
                    if walk.group_G[other] < 0:
                        walk.group_G[other], walk.order_G[n] = first, other
                        n += 1
        walk.end_G[first] = n


@kernel
def find_path(layer: Layer, first: int, last: int, level: float) -> int:
    """The nearest rank of the group below ``level`` that tokens of a rank above it can reach, or -1.
    ``from_slot_G`` and ``to_slot_G`` lead back from it; ``reached_G`` marks all ranks seen."""
    walk, n = layer.walk, 0
    for i in range(first, last):
        rank = walk.order_G[i]
        walk.reached_G[rank] = layer.load_G[rank] > level + EPSILON
        if walk.reached_G[rank]:
            walk.queue_G[n] = rank
            walk.from_slot_G[rank] = -1
            n += 1
    i = 0
    while i < n:
        rank = walk.queue_G[i]
        i += 1
        for k in range(walk.shared_G1[rank], walk.shared_G1[rank + 1]):
            slot = walk.shared_P[k]
            if layer.tokens_P[slot] <= 0.0:
                continue
            expert = layer.slot_expert_P[slot]
            for j in range(layer.start_E1[expert], layer.start_E1[expert + 1]):
                to = layer.slots_P[j]
                other = int(layer.rank_P[to])
                if walk.group_G[other] != first or walk.reached_G[other]:
                    continue
                walk.from_slot_G[other], walk.to_slot_G[other] = slot, to
                if layer.load_G[other] < level - EPSILON:
                    return other
                walk.reached_G[other], walk.queue_G[n] = True, other
                n += 1
    return -1


@kernel
def push(layer: Layer, sink: int, level: float) -> None:
    """Sends along the path to ``sink`` what its slots have, as far as neither end passes ``level``."""
    from_slot_G, to_slot_G, load_G = layer.walk.from_slot_G, layer.walk.to_slot_G, layer.load_G
    room, rank = level - load_G[sink], sink
    amount = room
    while from_slot_G[rank] >= 0:
        amount = min(amount, layer.tokens_P[from_slot_G[rank]])
        rank = layer.rank_P[from_slot_G[rank]]
    surplus = load_G[rank] - level
    amount = min(amount, surplus)
    load_G[rank] = level if amount >= surplus else load_G[rank] - amount
    load_G[sink] = level if amount >= room else load_G[sink] + amount
    rank = sink
    while from_slot_G[rank] >= 0:
        layer.tokens_P[to_slot_G[rank]] += amount
        layer.tokens_P[from_slot_G[rank]] -= amount
        rank = layer.rank_P[from_slot_G[rank]]


@kernel
def divide(layer: Layer, first: int, last: int) -> int:
    """Parts the group into the ranks that `find_path` reached, which come first, and the others. Returns
    where the others begin; ``last`` where there is nothing to part."""
    walk, middle, n = layer.walk, first, 0
    for i in range(first, last):
        rank = walk.order_G[i]
        if walk.reached_G[rank]:
            walk.order_G[middle] = rank
            middle += 1
        else:
            walk.queue_G[n] = rank
            n += 1
    for i in range(n):
        walk.order_G[middle + i] = walk.queue_G[i]
    if middle in (first, last):
        return last
    walk.end_G[first], walk.end_G[middle] = middle, last
    for i in range(middle, last):
        walk.group_G[walk.order_G[i]] = middle
    return middle


@kernel
def split_within_ranks(layer: Layer) -> None:
    """Replicas of an expert on one rank get the same."""
    for expert in range(len(layer.heat_E)):
        last = layer.start_E1[expert + 1]
        i = layer.start_E1[expert]
        while last - i > 1:
            rank, begin, total = layer.rank_P[layer.slots_P[i]], i, 0.0
            while i < last and layer.rank_P[layer.slots_P[i]] == rank:
                total += layer.tokens_P[layer.slots_P[i]]
                i += 1
            if i - begin > 1:
                for j in range(begin, i):
                    layer.tokens_P[layer.slots_P[j]] = total / (i - begin)
