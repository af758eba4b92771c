"""Mapping and counting on an accelerator: the same choice as on the CPU, in one launch.

One program for each expert reads all ids: it counts its own, then gives each its ordinal by a running sum,
and its replica by the interval that holds the ordinal. A pair, an expert's counters and its replicas belong
to one program alone, so nothing is atomic, nothing is scratch, and the result is the same every time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from isotherm.numbers import Numbers, are_plain, packed
from isotherm.router import rounding
from isotherm.router.layout import LayerTables

_BLOCK = 1024
_MASK = tl.constexpr(rounding.MASK)
_RANK_STRIDE = tl.constexpr(rounding.RANK_STRIDE)
_STEP_STRIDE = tl.constexpr(rounding.STEP_STRIDE)


def map_and_count(
    ids_TK: torch.Tensor,
    numbers: Numbers,
    base: int,
    tables: LayerTables,
    heat_KE: torch.Tensor,
    received_P: torch.Tensor,
) -> torch.Tensor:
    """As `device.map_and_count`, for contiguous int64 or int32 ids."""
    state = None
    if not are_plain(numbers):
        state, numbers = packed(numbers, ids_TK.device), (0, 0, 0, 0)
    step, first_token, num_tokens, num_decode = numbers
    slots_TK = torch.empty_like(ids_TK)
    _map_and_count[(heat_KE.shape[1],)](
        ids_TK,
        slots_TK,
        ids_TK if state is None else state,
        ids_TK.shape[0],
        ids_TK.shape[1],
        _signed(base + int(step) * rounding.STEP_STRIDE),
        first_token,
        num_tokens,
        num_decode,
        tables.offsets_E1,
        tables.slots_P,
        tables.ends_P,
        heat_KE[0],
        heat_KE[1],
        received_P,
        heat_KE.shape[1],
        FROM_DEVICE=state is not None,
        BLOCK=_BLOCK,
    )
    return slots_TK


def _signed(base: int) -> int:
    """``base`` modulo 2^32 in [-2^31, 2^31): Triton compiles one kernel for numbers of 32 bits and another
    for wider ones, and must not do so while serving."""
    return ((base + (1 << 31)) & rounding.MASK) - (1 << 31)


# One kernel for each type of ids, whatever the numbers and addresses are: nothing compiles while serving.
_NUMBERS = ["tokens", "top_k", "base", "first", "num_tokens", "num_decode", "experts"]
_ADDRESSES = ["ids_at", "mapped_at", "state_at", "offsets_at", "slots_at", "ends_at"]
_COUNTERS = ["prefill_at", "decode_at", "received_at"]


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_ADDRESSES + _COUNTERS)  # type: ignore[untyped-decorator]
def _map_and_count(  # type: ignore[no-untyped-def]
    ids_at,
    mapped_at,
    state_at,
    tokens,
    top_k,
    base,
    first,
    num_tokens,
    num_decode,
    offsets_at,
    slots_at,
    ends_at,
    prefill_at,
    decode_at,
    received_at,
    experts,
    FROM_DEVICE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    expert = tl.program_id(0)
    pairs = tokens * top_k
    offset = base + expert.to(tl.int64) * _RANK_STRIDE
    if FROM_DEVICE:
        offset += tl.load(state_at) * _STEP_STRIDE
        first, num_tokens, num_decode = tl.load(state_at + 1), tl.load(state_at + 2), tl.load(state_at + 3)
    offset = offset & _MASK
    first = tl.minimum(tl.maximum(first, 0), tokens)
    stop = tl.minimum(first + tl.maximum(num_tokens, 0), tokens)
    middle = tl.minimum(first + tl.maximum(num_decode, 0), stop)
    first_pair, middle_pair, stop_pair = first * top_k, middle * top_k, stop * top_k

    lanes = tl.arange(0, BLOCK)
    count = tl.zeros((), tl.int64)
    decode = tl.zeros((), tl.int32)
    prefill = tl.zeros((), tl.int32)
    for start in range(0, pairs, BLOCK):
        pair = start + lanes
        named = tl.load(ids_at + pair, mask=pair < pairs, other=-1)
        mine = named == expert
        count += tl.sum(mine.to(tl.int64))
        decode += tl.sum((mine & (pair >= first_pair) & (pair < middle_pair)).to(tl.int32))
        prefill += tl.sum((mine & (pair >= middle_pair) & (pair < stop_pair)).to(tl.int32))
        if expert == 0:
            nobodys = (pair < pairs) & ((named < 0) | (named >= experts))
            tl.store(mapped_at + pair, tl.full((BLOCK,), -1, named.dtype), mask=nobodys)
    tl.store(decode_at + expert, tl.load(decode_at + expert) + decode)
    tl.store(prefill_at + expert, tl.load(prefill_at + expert) + prefill)

    begin = tl.zeros((), tl.int64)
    for row in range(tl.load(offsets_at + expert), tl.load(offsets_at + expert + 1)):
        end = (tl.load(ends_at + row) * count + offset) >> 32
        slot = tl.load(slots_at + row)
        received = tl.zeros((), tl.int32)
        if end > begin:
            seen = tl.zeros((), tl.int64)
            for start in range(0, pairs, BLOCK):
                pair = start + lanes
                mine = tl.load(ids_at + pair, mask=pair < pairs, other=-1) == expert
                ordinal = seen + tl.cumsum(mine.to(tl.int64)) - 1
                taken = mine & (ordinal >= begin) & (ordinal < end)
                tl.store(mapped_at + pair, tl.broadcast_to(slot, (BLOCK,)), mask=taken)
                received += tl.sum((taken & (pair >= first_pair) & (pair < stop_pair)).to(tl.int32))
                seen += tl.sum(mine.to(tl.int64))
            tl.store(received_at + slot, tl.load(received_at + slot) + received)
        begin = end
