"""What one more replica would take off the ranks above a cap, told exactly from the two sides of the cut.

Where the flow is a greatest one, ranks that surplus reaches (the hot side) and ranks that reach room (the
cool side) have nothing in common: tokens of the hot side stay there, whatever their shares. A replica of an
expert of the hot side on a rank of the cool side opens the cut. What then flows is the lesser of what surplus
can be brought to that expert and what that rank can take in and pass on, each by itself a greatest flow (the
theorem of Ford and Fulkerson, 1956, used for a cut that one arc crosses).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel
from isotherm.planner.heap_kernels import heap_up, sink
from isotherm.planner.layers.layer import (
    Layer,
    begin,
    first_unseen,
    holds,
    set_expert,
    set_load,
    set_tokens,
    undo,
)
from isotherm.planner.search.flow_kernels import TINY, drain, fill, pour

HOT, COOL = 1, 2
EXPERTS = 8
"""So many experts of the hot side, those with most tokens that surplus could replace, are rated."""
PAIRS = 64
"""So many pairs of slots, of those that promise most, are tried out."""


class Cut(NamedTuple):
    """Experts of the hot side, and how much surplus could leave through each, most first."""

    expert_X: Int64Array
    out_X: FloatArray
    slot_P: Int64Array
    key_P: FloatArray
    pair_K: Int64Array
    score_K: FloatArray


@kernel
def new_cut(layer: Layer) -> Cut:
    slots = len(layer.slot_P)
    return Cut(
        np.zeros(EXPERTS, np.int64),
        np.zeros(EXPERTS),
        np.zeros(slots, np.int64),
        np.zeros(slots),
        np.zeros(PAIRS, np.int64),
        np.zeros(PAIRS),
    )


@kernel
def find_sides(layer: Layer, cap: float) -> None:
    """Tells of each rank on which side it is (0: on neither), and in which part of that: parts share no
    expert, and are named by their lowest rank, which has in ``amount`` the surplus or the room in them."""
    rank_G = layer.rank_G
    for rank in range(len(rank_G)):
        rank_G[rank]["side"] = 0
        rank_G[rank]["amount"] = 0.0
        rank_G[rank]["part"] = rank
    spread(layer, HOT, cap)
    spread(layer, COOL, cap)
    for rank in range(len(rank_G)):
        part = part_of(layer, rank)
        rank_G[rank]["part"] = part
        if rank_G[rank]["side"] == HOT:
            rank_G[part]["amount"] += max(0.0, rank_G[rank]["load"] - cap)
        elif rank_G[rank]["side"] == COOL:
            rank_G[part]["amount"] += max(0.0, cap - rank_G[rank]["load"])


@kernel
def spread(layer: Layer, side: int, cap: float) -> None:
    """Marks the ranks of one side, and joins those that share experts to parts."""
    n, i = 0, 0
    layer.count_4[0] += 1
    for rank in range(len(layer.rank_G)):
        over = layer.rank_G[rank]["load"] - cap if side == HOT else cap - layer.rank_G[rank]["load"]
        if over > TINY:
            layer.rank_G[rank]["side"], layer.rank_G[n]["queue"] = side, rank
            n += 1
    while i < n:
        rank = layer.rank_G[i]["queue"]
        i += 1
        slot = layer.rank_G[rank]["shared"]
        while slot >= 0:
            other_slot = -1
            if side == COOL or layer.slot_P[slot]["tokens"] > TINY:
                other_slot = first_unseen(layer, layer.slot_P[slot]["expert"])
            while other_slot >= 0:
                other = layer.slot_P[other_slot]["rank"]
                flows = side == HOT or layer.slot_P[other_slot]["tokens"] > TINY
                if flows and layer.rank_G[other]["side"] == 0:
                    layer.rank_G[other]["side"], layer.rank_G[n]["queue"] = side, other
                    n += 1
                other_slot = layer.slot_P[other_slot]["next"]
            slot = layer.slot_P[slot]["next_shared"]
    for expert in range(len(layer.expert_E)):
        slot, rank = layer.expert_E[expert]["first"], -1
        while slot >= 0:
            other = layer.slot_P[slot]["rank"]
            if layer.rank_G[other]["side"] == side:
                if rank >= 0:
                    join(layer, rank, other)
                rank = other
            slot = layer.slot_P[slot]["next"]


@kernel
def part_of(layer: Layer, rank: int) -> int:
    while layer.rank_G[rank]["part"] != rank:
        above = layer.rank_G[rank]["part"]
        layer.rank_G[rank]["part"] = layer.rank_G[above]["part"]
        rank = above
    return rank


@kernel
def join(layer: Layer, rank: int, other: int) -> None:
    one, two = part_of(layer, rank), part_of(layer, other)
    layer.rank_G[max(one, two)]["part"] = min(one, two)


@kernel
def keep_best(item_X: Int64Array, score_X: FloatArray, room: int, n: int, item: int, score: float) -> int:
    """Keeps the item if it is among the best ``room``, of which there are ``n``, highest score first and
    the first of equals before others. Returns how many there are then."""
    if n == room:
        if score <= score_X[n - 1]:
            return n
        n -= 1
    i = n
    while i > 0 and score > score_X[i - 1]:
        item_X[i], score_X[i] = item_X[i - 1], score_X[i - 1]
        i -= 1
    item_X[i], score_X[i] = item, score
    return n + 1


@kernel
def list_experts(layer: Layer, cut: Cut, passing: bool) -> int:
    """Writes to ``cut`` the experts of the hot side with most tokens there, and how many they are; if
    ``passing``, no more of those than there is surplus that could take their place. Returns how many."""
    n = 0
    layer.count_4[0] += 1
    number = layer.count_4[0]
    for slot in range(len(layer.slot_P)):
        rank, expert = layer.slot_P[slot]["rank"], layer.slot_P[slot]["expert"]
        if layer.rank_G[rank]["side"] != HOT or layer.slot_P[slot]["tokens"] <= TINY:
            continue
        if layer.expert_E[expert]["seen"] == number:
            continue
        layer.expert_E[expert]["seen"] = number
        tokens, other = 0.0, layer.expert_E[expert]["first"]
        while other >= 0:
            if layer.rank_G[layer.slot_P[other]["rank"]]["side"] == HOT:
                tokens += layer.slot_P[other]["tokens"]
            other = layer.slot_P[other]["next"]
        if passing:
            tokens = min(tokens, layer.rank_G[layer.rank_G[rank]["part"]]["amount"])
        n = keep_best(cut.expert_X, cut.out_X, EXPERTS, n, expert, tokens)
    return n


@kernel
def rate_experts(layer: Layer, cut: Cut, cap: float) -> int:
    """Writes to ``cut`` the experts of the hot side through which most surplus could leave, and how much.
    Returns how many."""
    rated = 0
    for i in range(list_experts(layer, cut, True)):
        expert = cut.expert_X[i]
        begin(layer)
        out = drain(layer, expert, cap)
        undo(layer)
        if out > TINY:
            rated = keep_best(cut.expert_X, cut.out_X, EXPERTS, rated, expert, out)
    return rated


@kernel
def stranded(layer: Layer, slot: int) -> float:
    """Tokens of the slot that no other slot of its expert can take in, as far as can be told at a glance."""
    if layer.slot_P[slot]["tokens"] <= TINY:
        return 0.0
    other = layer.expert_E[layer.slot_P[slot]["expert"]]["first"]
    while other >= 0:
        if other != slot and layer.rank_G[layer.slot_P[other]["rank"]]["side"] == COOL:
            return 0.0
        other = layer.slot_P[other]["next"]
    tokens: float = layer.slot_P[slot]["tokens"]
    return tokens


@kernel
def rate_slot(layer: Layer, slot: int, most: float, cap: float) -> tuple[float, float]:
    """What the slot's rank could take in and pass on, up to ``most``, if the slot were given another expert,
    and what its present one would add to the surplus."""
    old, tokens, rank, stays = (
        layer.slot_P[slot]["expert"],
        layer.slot_P[slot]["tokens"],
        layer.slot_P[slot]["rank"],
        0.0,
    )
    begin(layer)
    if tokens > TINY:
        set_expert(layer, slot, -1)
        set_tokens(layer, slot, 0.0)
        set_load(layer, rank, layer.rank_G[rank]["load"] - tokens)
        stays = pour(layer, old, tokens, cap)
    room = fill(layer, rank, most, cap)
    undo(layer)
    if tokens > TINY:
        set_expert(layer, slot, old)
    return room, stays


@kernel
def best_replica(layer: Layer, cut: Cut, cap: float, change_2: Int64Array) -> float:
    """Writes to ``change_2`` the slot and the expert that take most off the surplus, and returns how much;
    0 where no other expert in an empty or redundant slot does."""
    experts, best = rate_experts(layer, cut, cap), 0.0
    most = cut.out_X[0] if experts > 0 else 0.0
    n = list_slots(layer, cut, most, cap)
    while n > 0 and -cut.key_P[cut.slot_P[0]] > best + TINY:
        slot = cut.slot_P[0]
        rank = layer.slot_P[slot]["rank"]
        taken, stays = rate_slot(layer, slot, most, cap)
        k = 0
        while k < experts and holds(layer, rank, cut.expert_X[k]):
            k += 1
        if k < experts and min(cut.out_X[k], taken) - stays > best + TINY:
            best = min(cut.out_X[k], taken) - stays
            change_2[0], change_2[1] = slot, cut.expert_X[k]
        n -= 1
        cut.slot_P[0] = cut.slot_P[n]
        sink(cut.slot_P, n, 0, cut.key_P)
    return best


@kernel
def list_slots(layer: Layer, cut: Cut, most: float, cap: float) -> int:
    """Writes to ``cut`` a heap of the slots of the cool side that may get another expert, those first that
    could gain most at a glance. Returns how many."""
    n = 0
    for rank in range(len(layer.rank_G)):
        layer.rank_G[rank]["fixed"] = layer.rank_G[rank]["load"]
        slot = layer.rank_G[rank]["shared"]
        while slot >= 0:
            layer.rank_G[rank]["fixed"] -= layer.slot_P[slot]["tokens"]
            slot = layer.slot_P[slot]["next_shared"]
    for slot in range(len(layer.slot_P)):
        rank, old = layer.slot_P[slot]["rank"], layer.slot_P[slot]["expert"]
        if layer.rank_G[rank]["side"] != COOL or (old >= 0 and layer.expert_E[old]["count"] < 2):
            continue
        lost = stranded(layer, slot)
        room = layer.rank_G[layer.rank_G[rank]["part"]]["amount"] + lost
        gain = min(most, room, cap - layer.rank_G[rank]["fixed"]) - lost
        if gain > TINY:
            cut.slot_P[n], cut.key_P[slot] = slot, -gain
            n += 1
    heap_up(cut.slot_P, n, cut.key_P)
    return n
