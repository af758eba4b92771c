"""The exact split of one layer's tokens: no other lowers the hottest rank, nor the next, and so on.

Where tokens can flow from rank to rank over the replicas they share, all ranks are brought to the mean of
their loads by shortest augmenting paths. Where that stops, the ranks that the surplus reaches can give
nothing to the others: the two parts are levelled each for itself. Source: the decomposition algorithm for
lexicographically optimal flows (Fujishige 1980; Megiddo 1974), with all shortest paths at once (Dinic 1970).
"""

from __future__ import annotations

from isotherm.jit import kernel
from isotherm.planner.layers.layer import Layer, first_unseen

EPSILON = 1e-11
"""A rank within this of the level is on it, in units of the mean load."""


@kernel
def level_out(layer: Layer) -> None:
    """Moves tokens between replicas until the loads are the lowest there are, hottest first. Tokens and
    loads must add up before, and do so after."""
    ranks = len(layer.rank_G)
    list_groups(layer)
    first = 0
    while first < ranks:
        last, total = layer.rank_G[first]["end"], 0.0
        for i in range(first, last):
            total += layer.rank_G[layer.rank_G[i]["order"]]["load"]
        level = total / (last - first)
        while last - first > 1:
            nearest = find_depths(layer, first, last, level)
            if nearest == 0:
                break
            send_surplus(layer, first, last, nearest, level)
        middle = divide(layer, first, last) if last - first > 1 else last
        if middle == last:
            first = last
    split_within_ranks(layer)


@kernel
def list_groups(layer: Layer) -> None:
    """Lists in ``order`` the ranks that share experts side by side. A group is named by the place where it
    begins, and ``end`` says there where it ends."""
    for rank in range(len(layer.rank_G)):
        layer.rank_G[rank]["group"] = -1
    n = 0
    layer.count_4[0] += 1
    for begin in range(len(layer.rank_G)):
        if layer.rank_G[begin]["group"] >= 0:
            continue
        first, i = n, n
        layer.rank_G[begin]["group"], layer.rank_G[n]["order"] = first, begin
        n += 1
        while i < n:
            rank = layer.rank_G[i]["order"]
            i += 1
            slot = layer.rank_G[rank]["shared"]
            while slot >= 0:
                to = first_unseen(layer, layer.slot_P[slot]["expert"])
                while to >= 0:
                    other = layer.slot_P[to]["rank"]
                    if layer.rank_G[other]["group"] < 0:
                        layer.rank_G[other]["group"], layer.rank_G[n]["order"] = first, other
                        n += 1
                    to = layer.slot_P[to]["next"]
                slot = layer.slot_P[slot]["next_shared"]
        layer.rank_G[first]["end"] = n


@kernel
def find_depths(layer: Layer, first: int, last: int, level: float) -> int:
    """Writes to the ranks of the group how far they are from the ranks above ``level`` that tokens come from,
    and returns how far the nearest rank below it is; 0 where none can be reached. ``seen`` marks all ranks
    that it came by."""
    n, i, nearest = 0, 0, len(layer.rank_G)
    layer.count_4[0] += 1
    number = layer.count_4[0]
    for at in range(first, last):
        rank = layer.rank_G[at]["order"]
        layer.rank_G[rank]["arc"] = layer.rank_G[rank]["shared"]
        if layer.rank_G[rank]["load"] > level + EPSILON:
            layer.rank_G[rank]["seen"], layer.rank_G[n]["queue"] = number, rank
            layer.rank_G[rank]["depth"], layer.rank_G[rank]["from_slot"] = 0, -1
            n += 1
    while i < n:
        rank = layer.rank_G[i]["queue"]
        i += 1
        depth = layer.rank_G[rank]["depth"] + 1
        if depth > nearest:
            break
        slot = layer.rank_G[rank]["shared"]
        while slot >= 0:
            to, expert = -1, layer.slot_P[slot]["expert"]
            if layer.slot_P[slot]["tokens"] > 0.0:
                to = first_unseen(layer, expert)
            if to >= 0:
                layer.expert_E[expert]["depth"], layer.expert_E[expert]["arc"] = depth, to
            while to >= 0:
                other = int(layer.slot_P[to]["rank"])
                if layer.rank_G[other]["group"] == first and layer.rank_G[other]["seen"] != number:
                    layer.rank_G[other]["seen"], layer.rank_G[n]["queue"] = number, other
                    layer.rank_G[other]["depth"] = depth
                    n += 1
                    if layer.rank_G[other]["load"] < level - EPSILON:
                        nearest = depth
                to = layer.slot_P[to]["next"]
            slot = layer.slot_P[slot]["next_shared"]
    return nearest if nearest < len(layer.rank_G) else 0


@kernel
def find_path(layer: Layer, source: int, nearest: int, level: float) -> int:
    """A rank below ``level`` that tokens of ``source`` can reach, each step one deeper, or -1. ``from_slot``
    and ``to_slot`` lead back from it. What leads nowhere is not tried again at these depths."""
    rank = source
    while True:
        to = -1
        while to < 0 and layer.rank_G[rank]["arc"] >= 0:
            slot = layer.rank_G[rank]["arc"]
            expert, depth = layer.slot_P[slot]["expert"], layer.rank_G[rank]["depth"] + 1
            if layer.slot_P[slot]["tokens"] > 0.0 and layer.expert_E[expert]["depth"] == depth:
                to = next_arc(layer, expert, nearest, level)
            if to < 0:
                layer.rank_G[rank]["arc"] = layer.slot_P[slot]["next_shared"]
        if to >= 0:
            rank = int(layer.slot_P[to]["rank"])
            layer.rank_G[rank]["from_slot"], layer.rank_G[rank]["to_slot"] = slot, to
            if layer.rank_G[rank]["depth"] == nearest:
                return rank
        elif rank == source:
            return -1
        else:
            layer.rank_G[rank]["seen"] = 0
            rank = int(layer.slot_P[layer.rank_G[rank]["from_slot"]]["rank"])


@kernel
def next_arc(layer: Layer, expert: int, nearest: int, level: float) -> int:
    """The first slot of the expert that leads on, one deeper, or -1."""
    to = layer.expert_E[expert]["arc"]
    while to >= 0:
        rank = layer.slot_P[to]["rank"]
        depth = layer.rank_G[rank]["depth"]
        leads_on = layer.rank_G[rank]["seen"] == layer.count_4[0] and depth == layer.expert_E[expert]["depth"]
        if leads_on and (depth < nearest or layer.rank_G[rank]["load"] < level - EPSILON):
            break
        to = layer.slot_P[to]["next"]
    layer.expert_E[expert]["arc"] = to
    return int(to)


@kernel
def send_surplus(layer: Layer, first: int, last: int, nearest: int, level: float) -> None:
    """Sends what ranks above ``level`` can give over paths of ``nearest`` steps, until there are none."""
    for i in range(first, last):
        source, sink = layer.rank_G[i]["order"], 0
        while layer.rank_G[source]["load"] > level + EPSILON and sink >= 0:
            sink = find_path(layer, source, nearest, level)
            if sink >= 0:
                push(layer, sink, level)


@kernel
def push(layer: Layer, sink: int, level: float) -> None:
    """Sends along the path to ``sink`` what its slots have, as far as neither end passes ``level``."""
    room, rank = level - layer.rank_G[sink]["load"], sink
    amount = room
    while layer.rank_G[rank]["from_slot"] >= 0:
        amount = min(amount, layer.slot_P[layer.rank_G[rank]["from_slot"]]["tokens"])
        rank = layer.slot_P[layer.rank_G[rank]["from_slot"]]["rank"]
    surplus = layer.rank_G[rank]["load"] - level
    amount = min(amount, surplus)
    layer.rank_G[rank]["load"] = level if amount >= surplus else layer.rank_G[rank]["load"] - amount
    layer.rank_G[sink]["load"] = level if amount >= room else layer.rank_G[sink]["load"] + amount
    rank = sink
    while layer.rank_G[rank]["from_slot"] >= 0:
        layer.slot_P[layer.rank_G[rank]["to_slot"]]["tokens"] += amount
        layer.slot_P[layer.rank_G[rank]["from_slot"]]["tokens"] -= amount
        rank = layer.slot_P[layer.rank_G[rank]["from_slot"]]["rank"]


@kernel
def divide(layer: Layer, first: int, last: int) -> int:
    """Parts the group into the ranks that `find_depths` reached, which come first, and the others. Returns
    where the others begin; ``last`` where there is nothing to part."""
    middle, n = first, 0
    for i in range(first, last):
        rank = layer.rank_G[i]["order"]
        if layer.rank_G[rank]["seen"] == layer.count_4[0]:
            layer.rank_G[middle]["order"] = rank
            middle += 1
        else:
            layer.rank_G[n]["queue"] = rank
            n += 1
    for i in range(n):
        layer.rank_G[middle + i]["order"] = layer.rank_G[i]["queue"]
    if middle in (first, last):
        return last
    layer.rank_G[first]["end"], layer.rank_G[middle]["end"] = middle, last
    for i in range(middle, last):
        layer.rank_G[layer.rank_G[i]["order"]]["group"] = middle
    return middle


@kernel
def split_within_ranks(layer: Layer) -> None:
    """Replicas of an expert on one rank get the same."""
    for expert in range(len(layer.expert_E)):
        begin = layer.expert_E[expert]["first"]
        while begin >= 0:
            n, total, end = 0, 0.0, begin
            while end >= 0 and layer.slot_P[end]["rank"] == layer.slot_P[begin]["rank"]:
                total += layer.slot_P[end]["tokens"]
                n, end = n + 1, layer.slot_P[end]["next"]
            while n > 1 and begin != end:
                layer.slot_P[begin]["tokens"] = total / n
                begin = layer.slot_P[begin]["next"]
            begin = end
