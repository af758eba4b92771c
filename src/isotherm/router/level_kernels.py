"""Each large batch levelled by its own counts, on the CPU.

A rank knows the counts of its own batch, and what the other ranks send from the newest gathered heat. The
tokens of an expert are poured over its replicas as water is over vessels of the heights that their ranks have
reached, expert after expert, from the split by shares on. What is poured anew never lifts the highest of its
ranks, so the hottest rank, by what is known, is at no time hotter than shares would make it; and with every
turn the loads come nearer to the most even ones that there are (coordinate descent on the sum of squares,
whose least is the lexicographic optimum: Fujishige 1980).

What the others send is taken as they would level it: every rank does as this one does, so a surplus that all
of them see is not answered by all of them at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from isotherm.jit import int32_at, int64_at, kernel
from isotherm.router.rounding import MASK, RANK_STRIDE
from isotherm.router.tables import ONE
from isotherm.router.words import (
    ENDS_P,
    EXPERTS,
    LENGTH_P,
    LOAD_G,
    OFFSETS_E1,
    OTHERS_G,
    RANKS,
    SEEN_E,
    SLOTS,
    SLOTS_P,
    SPLIT_E1,
    WHOLE_E,
)

TURNS = 3
"""How often every expert is poured anew, at most."""


@kernel
def level_batch(call: np.ndarray, pairs: int, base: int) -> None:
    """Writes to ``LENGTH_P`` how many of the batch's tokens each replica takes, of the experts that have
    several with a share. Their counts are in ``SEEN_E``."""
    experts = call[EXPERTS]
    offsets_E1, split_E1 = int32_at(call[OFFSETS_E1], experts + 1), int32_at(call[SPLIT_E1], experts + 1)
    seen_E = int32_at(call[SEEN_E], experts)
    _load_what_is_fixed(call, pairs)
    for index in range(1, 1 + split_E1[0]):
        _split_by_shares(call, split_E1[index], base)
    for _ in range(TURNS):
        is_level = True
        for index in range(1, 1 + split_E1[0]):
            expert = split_E1[index]
            first, last, count = offsets_E1[expert], offsets_E1[expert + 1], seen_E[expert]
            if count > 0 and _pour(call, first, last, count, (base + expert * RANK_STRIDE) & MASK):
                is_level = False
        if is_level:
            return


@kernel
def _inverse(call: np.ndarray) -> Any:
    """A slot times this, shifted by 32, is its rank: a division takes ten times as long."""
    return ONE // (call[SLOTS] // call[RANKS]) + 1


@kernel
def _load_what_is_fixed(call: np.ndarray, pairs: int) -> None:
    """Loads of the other ranks' tokens, and of experts that have one replica."""
    experts, ranks, inverse = call[EXPERTS], call[RANKS], _inverse(call)
    load_G, others_G = int64_at(call[LOAD_G], ranks), int64_at(call[OTHERS_G], ranks)
    whole_E, seen_E = int64_at(call[WHOLE_E], experts), int32_at(call[SEEN_E], experts)
    for rank in range(ranks):
        load_G[rank] = (others_G[rank] * pairs) >> 20
    for expert in range(experts):
        if whole_E[expert] > MASK:
            load_G[np.uint64(((whole_E[expert] & MASK) * inverse) >> 32)] += seen_E[expert]


@kernel
def _split_by_shares(call: np.ndarray, expert: int, base: int) -> None:
    num_slots, experts = call[SLOTS], call[EXPERTS]
    offsets_E1, count = int32_at(call[OFFSETS_E1], experts + 1), int32_at(call[SEEN_E], experts)[expert]
    slots_P, ends_P = int32_at(call[SLOTS_P], num_slots), int64_at(call[ENDS_P], num_slots)
    length_P, load_G = int32_at(call[LENGTH_P], num_slots), int64_at(call[LOAD_G], call[RANKS])
    offset, inverse, begin = (base + expert * RANK_STRIDE) & MASK, _inverse(call), np.int64(0)
    for row in range(offsets_E1[expert], offsets_E1[expert + 1]):
        end = (ends_P[row] * count + offset) >> 32
        length_P[row] = end - begin
        load_G[(slots_P[row] * inverse) >> 32] += end - begin
        begin = end


@kernel
def _pour(call: np.ndarray, first: int, last: int, count: int, offset: int) -> bool:
    """Pours ``count`` tokens over the replicas in the rows [first, last) anew; whether any number changes. Of
    several replicas on one rank the first takes all. Odd tokens begin where ``offset`` says."""
    num_slots, inverse = call[SLOTS], _inverse(call)
    slots_P, length_P = int32_at(call[SLOTS_P], num_slots), int32_at(call[LENGTH_P], num_slots)
    load_G = int64_at(call[LOAD_G], call[RANKS])
    for row in range(first, last):
        load_G[(slots_P[row] * inverse) >> 32] -= length_P[row]
    level, over, vessels = _level_of(call, first, last, count)
    turn, before, has_changed = (offset * vessels) >> 32, -1, False
    begin = np.int64(0)
    for row in range(first, last):
        rank = (slots_P[row] * inverse) >> 32
        end, length = int64_at(call[ENDS_P], num_slots)[row], np.int64(0)
        if end > begin and rank != before:
            before = rank
            if load_G[rank] <= level:
                length = level - load_G[rank] + (turn < over)
                turn = turn + 1 if turn + 1 < vessels else 0
        begin = end
        has_changed |= length != length_P[row]
        length_P[row] = length
        load_G[rank] += length
    return has_changed


@kernel
def _level_of(call: np.ndarray, first: int, last: int, count: int) -> Any:
    """To which level ``count`` tokens fill the ranks of the replicas that have a share, how many ranks go one
    above it, and how many ranks are no higher than it."""
    num_slots, inverse = call[SLOTS], _inverse(call)
    slots_P, ends_P = int32_at(call[SLOTS_P], num_slots), int64_at(call[ENDS_P], num_slots)
    load_G = int64_at(call[LOAD_G], call[RANKS])
    level = np.int64(1) << 62
    while True:
        total, vessels, highest, before = np.int64(count), 0, np.int64(-1), -1
        begin = np.int64(0)
        for row in range(first, last):
            rank = (slots_P[row] * inverse) >> 32
            if ends_P[row] > begin and rank != before:
                before = rank
                if load_G[rank] <= level:
                    total += load_G[rank]
                    vessels += 1
                    highest = max(highest, load_G[rank])
            begin = ends_P[row]
        level = total // vessels
        if highest <= level:
            return level, total - level * vessels, vessels
