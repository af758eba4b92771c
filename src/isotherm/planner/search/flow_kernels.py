"""Tokens that flow from ranks above a cap to ranks with room below it, over the replicas they share.

Between two changes of a layer the flow is a greatest one: no path leads from a rank above the cap to one with
room. A change of one slot opens paths through that slot's rank alone, so it is followed up from there, and
taken back from the journal: neither costs more than what it touches. Source: augmenting paths (Ford and
Fulkerson 1956), the shortest first (Edmonds and Karp 1972).
"""

from __future__ import annotations

from isotherm.jit import kernel
from isotherm.planner.layers.layer import Layer, first_unseen, set_expert, set_load, set_tokens

TINY = 1e-9
"""Tokens, room and surplus of less than this, in units of the mean load of a rank, are none."""


@kernel
def find_room(layer: Layer, start: int, cap: float) -> int:
    """The nearest rank with room that tokens on rank ``start`` can reach, or -1. ``from_slot_G`` and
    ``to_slot_G`` lead back from it."""
    n, i = 1, 0
    layer.count_4[0] += 1
    number = layer.count_4[0]
    layer.rank_G[start]["seen"], layer.rank_G[0]["queue"], layer.rank_G[start]["from_slot"] = (
        number,
        start,
        -1,
    )
    if layer.rank_G[start]["load"] < cap - TINY:
        return start
    while i < n:
        slot = layer.rank_G[layer.rank_G[i]["queue"]]["shared"]
        i += 1
        while slot >= 0:
            to = -1
            if layer.slot_P[slot]["tokens"] > TINY:
                to = first_unseen(layer, layer.slot_P[slot]["expert"])
            while to >= 0:
                rank = int(layer.slot_P[to]["rank"])
                if layer.rank_G[rank]["seen"] != number:
                    (
                        layer.rank_G[rank]["seen"],
                        layer.rank_G[rank]["from_slot"],
                        layer.rank_G[rank]["to_slot"],
                    ) = number, slot, to
                    if layer.rank_G[rank]["load"] < cap - TINY:
                        return rank
                    layer.rank_G[n]["queue"] = rank
                    n += 1
                to = layer.slot_P[to]["next"]
            slot = layer.slot_P[slot]["next_shared"]
    return -1


@kernel
def find_surplus(layer: Layer, start: int, expert: int, cap: float) -> int:
    """The nearest rank above the cap whose tokens can reach rank ``start`` or, if that is -1, can take the
    place of tokens of ``expert``; or -1. ``back_from_G`` and ``back_to_G`` lead on from it, to -1 at the end.
    """
    n, i = 0, 0
    layer.count_4[0] += 1
    number = layer.count_4[0]
    if start >= 0:
        layer.rank_G[start]["seen"], layer.rank_G[0]["queue"], layer.rank_G[start]["back_from"] = (
            number,
            start,
            -1,
        )
        n = 1
        if layer.rank_G[start]["load"] > cap + TINY:
            return start
    slot = first_unseen(layer, expert) if start < 0 else -1
    while slot >= 0:
        rank = int(layer.slot_P[slot]["rank"])
        if layer.slot_P[slot]["tokens"] > TINY and layer.rank_G[rank]["seen"] != number:
            layer.rank_G[rank]["seen"], layer.rank_G[rank]["back_from"], layer.rank_G[rank]["back_to"] = (
                number,
                slot,
                -1,
            )
            if layer.rank_G[rank]["load"] > cap + TINY:
                return rank
            layer.rank_G[n]["queue"] = rank
            n += 1
        slot = layer.slot_P[slot]["next"]
    while i < n:
        to = layer.rank_G[layer.rank_G[i]["queue"]]["shared"]
        i += 1
        while to >= 0:
            slot = first_unseen(layer, layer.slot_P[to]["expert"])
            while slot >= 0:
                rank = int(layer.slot_P[slot]["rank"])
                if layer.slot_P[slot]["tokens"] > TINY and layer.rank_G[rank]["seen"] != number:
                    (
                        layer.rank_G[rank]["seen"],
                        layer.rank_G[rank]["back_from"],
                        layer.rank_G[rank]["back_to"],
                    ) = number, slot, to
                    if layer.rank_G[rank]["load"] > cap + TINY:
                        return rank
                    layer.rank_G[n]["queue"] = rank
                    n += 1
                slot = layer.slot_P[slot]["next"]
            to = layer.slot_P[to]["next_shared"]
    return -1


@kernel
def room_of(layer: Layer, sink: int, cap: float) -> float:
    """What the path to ``sink`` that `find_room` found can take."""
    amount: float = cap - layer.rank_G[sink]["load"]
    slot = layer.rank_G[sink]["from_slot"]
    while slot >= 0:
        amount = min(amount, layer.slot_P[slot]["tokens"])
        slot = layer.rank_G[layer.slot_P[slot]["rank"]]["from_slot"]
    return amount


@kernel
def surplus_of(layer: Layer, source: int, cap: float) -> float:
    """What the path from ``source`` that `find_surplus` found can give."""
    amount: float = layer.rank_G[source]["load"] - cap
    rank = source
    while layer.rank_G[rank]["back_from"] >= 0:
        amount = min(amount, layer.slot_P[layer.rank_G[rank]["back_from"]]["tokens"])
        if layer.rank_G[rank]["back_to"] < 0:
            break
        rank = layer.slot_P[layer.rank_G[rank]["back_to"]]["rank"]
    return amount


@kernel
def send(layer: Layer, sink: int, amount: float) -> None:
    """Sends tokens along the path that `find_room` found. The load of its first rank is the caller's."""
    rank = sink
    set_load(layer, sink, layer.rank_G[sink]["load"] + amount)
    while layer.rank_G[rank]["from_slot"] >= 0:
        slot, to = layer.rank_G[rank]["from_slot"], layer.rank_G[rank]["to_slot"]
        set_tokens(layer, to, layer.slot_P[to]["tokens"] + amount)
        set_tokens(layer, slot, layer.slot_P[slot]["tokens"] - amount)
        rank = layer.slot_P[slot]["rank"]


@kernel
def fetch(layer: Layer, source: int, amount: float) -> None:
    """Brings tokens along the path that `find_surplus` found. What arrives at its end is the caller's."""
    rank = source
    set_load(layer, source, layer.rank_G[source]["load"] - amount)
    while layer.rank_G[rank]["back_from"] >= 0:
        slot, to = layer.rank_G[rank]["back_from"], layer.rank_G[rank]["back_to"]
        set_tokens(layer, slot, layer.slot_P[slot]["tokens"] - amount)
        if to < 0:
            break
        set_tokens(layer, to, layer.slot_P[to]["tokens"] + amount)
        rank = layer.slot_P[to]["rank"]


@kernel
def relieve(layer: Layer, rank: int, cap: float) -> None:
    """Sends what can go through ``rank`` from ranks above the cap, itself before others, to room."""
    while True:
        sink = find_room(layer, rank, cap)
        if sink < 0:
            return
        source = find_surplus(layer, rank, -1, cap)
        if source < 0:
            return
        amount = min(room_of(layer, sink, cap), surplus_of(layer, source, cap))
        send(layer, sink, amount)
        fetch(layer, source, amount)


@kernel
def pour(layer: Layer, expert: int, tokens: float, cap: float) -> float:
    """Gives tokens to the slots of ``expert``: to ranks with room, then the rest to the first and on from
    there as far as it goes. Returns what stays above the cap."""
    slot = layer.expert_E[expert]["first"]
    while slot >= 0 and tokens > 0.0:
        rank = layer.slot_P[slot]["rank"]
        amount = min(tokens, cap - layer.rank_G[rank]["load"])
        if amount > 0.0:
            set_tokens(layer, slot, layer.slot_P[slot]["tokens"] + amount)
            set_load(layer, rank, layer.rank_G[rank]["load"] + amount)
            tokens -= amount
        slot = layer.slot_P[slot]["next"]
    if tokens <= 0.0:
        return 0.0
    slot = layer.expert_E[expert]["first"]
    rank = layer.slot_P[slot]["rank"]
    before = max(cap, layer.rank_G[rank]["load"])
    set_tokens(layer, slot, layer.slot_P[slot]["tokens"] + tokens)
    set_load(layer, rank, layer.rank_G[rank]["load"] + tokens)
    while layer.rank_G[rank]["load"] > cap + TINY:
        sink = find_room(layer, rank, cap)
        if sink < 0:
            break
        amount = min(room_of(layer, sink, cap), layer.rank_G[rank]["load"] - cap)
        send(layer, sink, amount)
        set_load(layer, rank, layer.rank_G[rank]["load"] - amount)
    left: float = max(0.0, layer.rank_G[rank]["load"] - before)
    return left


@kernel
def replace(layer: Layer, slot: int, expert: int, cap: float) -> None:
    """Gives the slot another expert, or none (-1), and makes the flow a greatest one again. An expert whose
    last slot is taken has its tokens nowhere until it gets another."""
    rank, old, tokens = layer.slot_P[slot]["rank"], layer.slot_P[slot]["expert"], layer.slot_P[slot]["tokens"]
    set_tokens(layer, slot, 0.0)
    set_load(layer, rank, layer.rank_G[rank]["load"] - tokens)
    set_expert(layer, slot, expert)
    if expert >= 0 and layer.expert_E[expert]["count"] == 1:
        set_tokens(layer, slot, layer.expert_E[expert]["heat"])
        set_load(layer, rank, layer.rank_G[rank]["load"] + layer.expert_E[expert]["heat"])
    relieve(layer, rank, cap)
    if old >= 0 and tokens > 0.0 and layer.expert_E[old]["count"] > 0:
        pour(layer, old, tokens, cap)


@kernel
def drain(layer: Layer, expert: int, cap: float) -> float:
    """Takes away what ranks above the cap could give through ``expert`` if it had room without end, and
    returns how much."""
    total = 0.0
    while True:
        source = find_surplus(layer, -1, expert, cap)
        if source < 0:
            return total
        amount = surplus_of(layer, source, cap)
        fetch(layer, source, amount)
        total += amount


@kernel
def fill(layer: Layer, rank: int, most: float, cap: float) -> float:
    """Sends tokens out of nothing from ``rank`` on to room, and returns how much found some; it ends when
    that is ``most``."""
    total = 0.0
    while total < most:
        sink = find_room(layer, rank, cap)
        if sink < 0:
            return total
        amount = room_of(layer, sink, cap)
        send(layer, sink, amount)
        total += amount
    return total


@kernel
def surplus(layer: Layer, cap: float) -> float:
    """What all ranks carry above the cap."""
    total = 0.0
    for rank in range(len(layer.rank_G)):
        load = layer.rank_G[rank]["load"]
        if load > cap + TINY:
            total += load - cap
    return total
