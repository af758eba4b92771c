"""Mapping and counting in one call over a batch, on the CPU.

The ``n`` tokens of an expert in a batch are split by ordinal: replica ``r`` takes the ordinals in
``[floor(end[r-1] * n + o), floor(end[r] * n + o))`` with ``o`` in [0, 1) from step, rank, layer, micro-batch
and expert, so each replica's count is within 1 of its share of ``n``. Ids that name no expert map to -1.
Pairs outside of ``[first, stop)`` are not this rank's, or padding: mapped, not counted.

Most experts have one replica with a share, so what they need is known when the tables are loaded
(`tables.fill_whole`): ``whole_E`` holds the slot in its low half and more tokens than ever come in its high
half. For the others, ``split_E1``, the high half is 0, and each batch finds out how many each replica takes:
by ordinal as above, or, with ``RANKS``, as many as level this batch (`level_kernels`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from isotherm.counting import ONE_MORE, THREE_MORE, TWO_MORE, count_pairs
from isotherm.jit import int32_at, int64_at, kernel, likely
from isotherm.router.level_kernels import level_batch
from isotherm.router.rounding import MASK, RANK_STRIDE, STEP_STRIDE
from isotherm.router.tables import ONE
from isotherm.router.tensors import rows_of
from isotherm.router.words import (
    BASE,
    DECODE_E,
    ENDS_P,
    EXPERTS,
    FIRST_E,
    LENGTH_P,
    MIDDLE_E,
    OFFSETS_E1,
    PREFILL_E,
    RANKS,
    RECEIVED_P,
    ROW_E,
    SEEN_E,
    SLOTS,
    SLOTS_P,
    SPLIT_E1,
    STATE_E,
    STOP_E,
    WHOLE_E,
    WORDS,
)

FEW = 2
"""Batches with fewer pairs than experts / FEW are mapped pair by pair: a pass over all experts would cost
more than they do."""


@kernel
def map_ids(
    call_at: int, ids_TK: Any, slots_TK: Any, step: int, first_token: int, num_tokens: int, num_decode: int
) -> bool:
    """Slots for the ids in a tensor [tokens, top_k], written to one like it; the counts are added in place.
    ``call_at`` is the address of the words above. False, and nothing is done: the ids are not int64 or int32,
    contiguous and in the CPU's memory."""
    ids_at, tokens, top_k, bits = rows_of(ids_TK)
    slots_at, _, _, slots_bits = rows_of(slots_TK)
    pairs = tokens * top_k
    numbers = step, first_token, num_tokens, num_decode
    if bits == 64 and slots_bits == 64:
        _map(call_at, int64_at(ids_at, pairs), int64_at(slots_at, pairs), tokens, top_k, numbers)
        return True
    if bits == 32 and slots_bits == 32:
        _map(call_at, int32_at(ids_at, pairs), int32_at(slots_at, pairs), tokens, top_k, numbers)
        return True
    return False


@kernel
def _map(
    call_at: int,
    ids: np.ndarray,
    slots: np.ndarray,
    tokens: int,
    top_k: int,
    numbers: tuple[int, int, int, int],
) -> None:
    step, first_token, num_tokens, num_decode = numbers
    call = int64_at(call_at, WORDS)
    first_token = min(max(first_token, 0), tokens)
    stop_token = min(max(first_token + num_tokens, first_token), tokens)
    middle_token = min(max(first_token + num_decode, first_token), stop_token)
    first, middle, stop = first_token * top_k, middle_token * top_k, stop_token * top_k
    base = (call[BASE] + step * STEP_STRIDE) & MASK
    if FEW * len(ids) < call[EXPERTS]:
        _map_few(call, ids, slots, base, first, middle, stop)
    else:
        _map_many(call, ids, slots, base, first, middle, stop)


@kernel
def _map_few(
    call: np.ndarray, ids: np.ndarray, slots: np.ndarray, base: int, first: int, middle: int, stop: int
) -> None:
    """Touches only what the batch names, and leaves the scratch as zero as it was."""
    experts, num_slots = call[EXPERTS], call[SLOTS]
    whole_E = int64_at(call[WHOLE_E], experts)
    received_P = int32_at(call[RECEIVED_P], num_slots)
    seen_E, ordinal_E = int32_at(call[SEEN_E], experts), int32_at(call[FIRST_E], experts)
    count_pairs(ids, 0, len(ids), seen_E)
    count_pairs(ids, first, middle, int32_at(call[DECODE_E], experts))
    count_pairs(ids, middle, stop, int32_at(call[PREFILL_E], experts))
    for pair in range(len(ids)):
        expert = np.uint64(ids[pair])
        if expert >= np.uint64(experts):
            slots[pair] = -1
            continue
        whole = whole_E[expert]
        slot = whole & MASK
        if whole <= MASK:
            slot = _replica(call, np.int64(expert), seen_E[expert], ordinal_E[expert], base)
            ordinal_E[expert] += np.int32(1)
        slots[pair] = slot
        if first <= pair < stop:
            received_P[np.uint64(slot)] += np.int32(1)
    for pair in range(len(ids)):
        expert = np.uint64(ids[pair])
        if expert < np.uint64(experts):
            seen_E[expert] = 0
            ordinal_E[expert] = 0


@kernel
def _replica(call: np.ndarray, expert: Any, count: int, ordinal: int, base: int) -> Any:
    """The slot of the token ``ordinal`` of the ``count`` of this expert."""
    row = int32_at(call[OFFSETS_E1], call[EXPERTS] + 1)[expert]
    ends_P = int64_at(call[ENDS_P], call[SLOTS])
    offset = (base + expert * RANK_STRIDE) & MASK
    while (ends_P[row] * count + offset) >> 32 <= ordinal:
        row += 1
    return int32_at(call[SLOTS_P], call[SLOTS])[row]


@kernel
def _map_many(
    call: np.ndarray, ids: np.ndarray, slots: np.ndarray, base: int, first: int, middle: int, stop: int
) -> None:
    """Two passes over the pairs, and between them one over the experts."""
    experts, num_slots = call[EXPERTS], call[SLOTS]
    whole_E, state_E = int64_at(call[WHOLE_E], experts), int64_at(call[STATE_E], experts)
    seen_E, first_E = int32_at(call[SEEN_E], experts), int32_at(call[FIRST_E], experts)
    received_P = int32_at(call[RECEIVED_P], num_slots)
    stop_E = _count_kinds(call, ids, first, middle, stop)
    for expert in range(experts):
        state_E[expert] = whole_E[expert]
    for expert in range(experts):
        # As if the first replica received all; what others receive is taken from it below.
        received_P[np.uint64(whole_E[expert] & MASK)] += stop_E[expert] - first_E[expert]
    if call[RANKS] > 0:
        level_batch(call, len(ids), base)
    _split(call, stop_E, base)
    for expert in range(experts):
        seen_E[expert] = 0
        first_E[expert] = 0
    _assign(call, ids, slots, state_E)


@kernel
def _count_kinds(call: np.ndarray, ids: np.ndarray, first: int, middle: int, stop: int) -> np.ndarray:
    """Counts all pairs in ``SEEN_E``, and the real ones by kind; leaves in ``FIRST_E`` what stood there at
    ``first``, and returns what stood there at ``stop``."""
    experts = call[EXPERTS]
    prefill_E, decode_E = int32_at(call[PREFILL_E], experts), int32_at(call[DECODE_E], experts)
    seen_E, first_E = int32_at(call[SEEN_E], experts), int32_at(call[FIRST_E], experts)
    if first == 0 and stop == len(ids) and (middle in (first, stop)):
        count_pairs(ids, 0, len(ids), seen_E)
        kind_E = prefill_E if middle == first else decode_E
        for expert in range(experts):
            kind_E[expert] += seen_E[expert]
        return seen_E
    middle_E, stop_E = int32_at(call[MIDDLE_E], experts), int32_at(call[STOP_E], experts)
    count_pairs(ids, 0, first, seen_E)
    first_E[:] = seen_E
    count_pairs(ids, first, middle, seen_E)
    middle_E[:] = seen_E
    count_pairs(ids, middle, stop, seen_E)
    stop_E[:] = seen_E
    count_pairs(ids, stop, len(ids), seen_E)
    for expert in range(experts):
        decode_E[expert] += middle_E[expert] - first_E[expert]
        prefill_E[expert] += stop_E[expert] - middle_E[expert]
    return stop_E


@kernel
def _split(call: np.ndarray, stop_E: np.ndarray, base: int) -> None:
    """For the experts with several replicas: how many tokens of the batch each takes, unless `level_batch`
    has said so, and how many of these are real. A replica's real tokens are what its interval has in common
    with that of real ordinals."""
    experts, num_slots, is_level = call[EXPERTS], call[SLOTS], call[RANKS] > 0
    offsets_E1, split_E1 = int32_at(call[OFFSETS_E1], experts + 1), int32_at(call[SPLIT_E1], experts + 1)
    slots_P, ends_P = int32_at(call[SLOTS_P], num_slots), int64_at(call[ENDS_P], num_slots)
    length_P, received_P = int32_at(call[LENGTH_P], num_slots), int32_at(call[RECEIVED_P], num_slots)
    seen_E, first_E = int32_at(call[SEEN_E], experts), int32_at(call[FIRST_E], experts)
    whole_E = int64_at(call[WHOLE_E], experts)
    state_E, row_E = int64_at(call[STATE_E], experts), int32_at(call[ROW_E], experts)
    for index in range(1, 1 + split_E1[0]):
        expert = np.uint64(split_E1[index])
        count, real_from, real_to = seen_E[expert], first_E[expert], stop_E[expert]
        if count == 0:
            continue
        offset = (base + np.int64(expert) * RANK_STRIDE) & MASK
        received_P[np.uint64(whole_E[expert])] -= real_to - real_from
        begin = np.int64(0)
        for row in range(np.uint64(offsets_E1[expert]), np.uint64(offsets_E1[expert + np.uint64(1)])):
            end = begin + length_P[row] if is_level else (ends_P[row] * count + offset) >> 32
            length_P[row] = end - begin
            if begin == 0 and end > 0:
                row_E[expert] = row
                state_E[expert] = (end << 32) | np.int64(slots_P[row])
            real = min(end, np.int64(real_to)) - max(begin, np.int64(real_from))
            received_P[np.uint64(slots_P[row])] += max(real, 0)
            begin = end


@kernel
def _assign(call: np.ndarray, ids: np.ndarray, slots: np.ndarray, state_E: np.ndarray) -> None:
    """The state of an expert: how many more tokens its present replica takes, above the replica's slot.

    Four pairs at a time, as long as all have an expert and no replica is full: one branch for four. What
    was done for four that do not is undone, and they go one by one."""
    experts, num_slots = np.uint64(call[EXPERTS]), call[SLOTS]
    slots_P, length_P = int32_at(call[SLOTS_P], num_slots), int32_at(call[LENGTH_P], num_slots)
    row_E = int32_at(call[ROW_E], call[EXPERTS])
    group, groups = 0, len(ids) // 4
    while group < groups:
        for group in range(group, groups):  # noqa: B020 - goes on where the last four stopped it
            pair = np.uint64(4 * group)
            a, b = np.uint64(ids[pair]), np.uint64(ids[pair + ONE_MORE])
            c, d = np.uint64(ids[pair + TWO_MORE]), np.uint64(ids[pair + THREE_MORE])
            if not likely((a < experts) & (b < experts) & (c < experts) & (d < experts)):
                break
            # One after the other: an expert may come twice.
            state_a = state_E[a] - ONE
            state_E[a] = state_a
            state_b = state_E[b] - ONE
            state_E[b] = state_b
            state_c = state_E[c] - ONE
            state_E[c] = state_c
            state_d = state_E[d] - ONE
            state_E[d] = state_d
            if not likely((state_a | state_b | state_c | state_d) >= 0):
                state_E[a] += ONE
                state_E[b] += ONE
                state_E[c] += ONE
                state_E[d] += ONE
                break
            slots[pair], slots[pair + ONE_MORE] = np.int32(state_a), np.int32(state_b)
            slots[pair + TWO_MORE], slots[pair + THREE_MORE] = np.int32(state_c), np.int32(state_d)
        else:
            break
        _assign_each(ids, slots, 4 * group, 4 * group + 4, state_E, row_E, length_P, slots_P)
        group += 1
    _assign_each(ids, slots, 4 * groups, len(ids), state_E, row_E, length_P, slots_P)


@kernel
def _assign_each(
    ids: np.ndarray,
    slots: np.ndarray,
    start: int,
    stop: int,
    state_E: np.ndarray,
    row_E: np.ndarray,
    length_P: np.ndarray,
    slots_P: np.ndarray,
) -> None:
    for pair in range(start, stop):
        expert = np.uint64(ids[pair])
        if expert < np.uint64(len(state_E)):
            state = state_E[expert] - ONE
            if state < 0:
                state = _next_replica(expert, row_E, length_P, slots_P)
            state_E[expert] = state
            slots[pair] = np.int32(state)
        else:
            slots[pair] = -1


@kernel
def _next_replica(expert: Any, row_E: np.ndarray, length_P: np.ndarray, slots_P: np.ndarray) -> Any:
    """The state of an expert after the first token of its next replica."""
    row = np.uint64(row_E[expert]) + np.uint64(1)
    while length_P[row] == 0:
        row += np.uint64(1)
    row_E[expert] = row
    return (np.int64(length_P[row] - np.int32(1)) << 32) | np.int64(slots_P[row])
