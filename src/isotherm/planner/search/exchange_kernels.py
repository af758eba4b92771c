"""Changes of two slots at once: an expert of the cool side makes room for one of the hot side."""

from __future__ import annotations

from isotherm.arrays import Int64Array
from isotherm.jit import kernel
from isotherm.planner.heap_kernels import heap_up, sink
from isotherm.planner.layers.layer import Layer, begin, holds, set_expert, undo
from isotherm.planner.search.cut_kernels import COOL, HOT, Cut, keep_best, list_experts, stranded
from isotherm.planner.search.flow_kernels import TINY, replace, surplus


@kernel
def best_pair(layer: Layer, cut: Cut, cap: float, change_4: Int64Array) -> float:
    """Writes to ``change_4`` two slots and their new experts, which together take most off the surplus, and
    returns how much; 0 where no pair does. The first slot, redundant or on the hot side, gets the expert of
    the second, on the cool side, which gets one of the hot side: a move into a place that is made free, or a
    swap. The sides must be found."""
    n = list_pairs(layer, cut, list_experts(layer, cut, False))
    now, best, slots = surplus(layer, cap), 0.0, len(layer.slot_P)
    for i in range(n):
        expert = cut.expert_X[cut.pair_K[i] // (slots * slots)]
        slot, place = cut.pair_K[i] // slots % slots, cut.pair_K[i] % slots
        moved, given = layer.slot_P[place]["expert"], layer.slot_P[slot]["expert"]
        begin(layer)
        replace(layer, slot, moved, cap)
        replace(layer, place, expert, cap)
        gain = now - surplus(layer, cap)
        undo(layer)
        set_expert(layer, place, moved)
        set_expert(layer, slot, given)
        if gain > best + TINY:
            best = gain
            change_4[0], change_4[1], change_4[2], change_4[3] = slot, moved, place, expert
    return best


@kernel
def list_pairs(layer: Layer, cut: Cut, experts: int) -> int:
    """Lists the pairs that promise most, (expert of ``cut``, slot, place) as one number each: what the place
    could take in of the expert, less what its own expert brings to the hot side. Returns how many."""
    n, slots = 0, len(layer.slot_P)
    cool, other = list_makers(layer, cut, experts)
    for place in range(slots):
        rank, moved = layer.slot_P[place]["rank"], layer.slot_P[place]["expert"]
        if layer.rank_G[rank]["side"] == COOL and moved >= 0 and layer.expert_E[moved]["count"] == 1:
            n = add_pairs(layer, cut, experts, place, cool, 0, n)
            n = add_pairs(layer, cut, experts, place, slots, other, n)
    return n


@kernel
def list_makers(layer: Layer, cut: Cut, experts: int) -> tuple[int, int]:
    """Lists the slots that may get the expert of a place on the cool side, the last of each list first: up to
    the first number returned redundant ones of the cool side, with the tokens that they leave stranded,
    fewest first; from the second on those where all that the place's own expert has would be above the cap.
    """
    cool, other = 0, len(layer.slot_P)
    for slot in range(len(layer.slot_P)):
        given, side = layer.slot_P[slot]["expert"], layer.rank_G[layer.slot_P[slot]["rank"]]["side"]
        alone = given >= 0 and layer.expert_E[given]["count"] == 1
        if side == COOL and not alone:
            cut.slot_P[cool], cut.key_P[slot] = slot, stranded(layer, slot)
            cool += 1
        elif not alone or (side == HOT and is_listed(cut, experts, given)):
            other -= 1
            cut.slot_P[other], cut.key_P[slot] = slot, -1.0
    heap_up(cut.slot_P, cool, cut.key_P)
    for last in range(cool - 1, 0, -1):
        cut.slot_P[0], cut.slot_P[last] = cut.slot_P[last], cut.slot_P[0]
        sink(cut.slot_P, last, 0, cut.key_P)
    return cool, other


@kernel
def is_listed(cut: Cut, experts: int, expert: int) -> bool:
    k = 0
    while k < experts and cut.expert_X[k] != expert:
        k += 1
    return k < experts


@kernel
def add_pairs(layer: Layer, cut: Cut, experts: int, place: int, begin: int, end: int, n: int) -> int:
    """Adds to the best pairs, of which there are ``n``, those of one place with the slots listed from before
    ``begin`` back to ``end``. Returns how many there are then."""
    slots, rank, tokens = len(layer.slot_P), layer.slot_P[place]["rank"], layer.slot_P[place]["tokens"]
    room = layer.rank_G[layer.rank_G[rank]["part"]]["amount"] + tokens
    for i in range(begin - 1, end - 1, -1):
        slot = cut.slot_P[i]
        given, lost = layer.slot_P[slot]["expert"], cut.key_P[slot] if cut.key_P[slot] >= 0.0 else tokens
        alone = given >= 0 and layer.expert_E[given]["count"] == 1
        for k in range(experts):
            score, expert = min(cut.out_X[k], room) - lost, cut.expert_X[k]
            if score <= TINY or (n == len(cut.pair_K) and score <= cut.score_K[n - 1]):
                if k == 0:
                    return n
                break
            if (
                layer.slot_P[slot]["rank"] == rank
                or (alone and given != expert)
                or holds(layer, rank, expert)
            ):
                continue
            number = (k * slots + slot) * slots + place
            n = keep_best(cut.pair_K, cut.score_K, len(cut.pair_K), n, number, score)
    return n
