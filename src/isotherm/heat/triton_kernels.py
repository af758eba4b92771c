"""Counting ids on an accelerator, in one launch: a program for each expert reads all ids and counts its own,
so nothing is atomic."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from isotherm.numbers import Numbers, are_plain, packed

_BLOCK = 1024


def count(ids_TK: torch.Tensor, numbers: Numbers, heat_KE: torch.Tensor) -> None:
    """As `device.count`, for contiguous int64 or int32 ids."""
    state = None
    if not are_plain(numbers):
        state, numbers = packed(numbers, ids_TK.device), (0, 0, 0)
    first_token, num_tokens, num_decode = numbers
    _count[(heat_KE.shape[1],)](
        ids_TK,
        ids_TK if state is None else state,
        ids_TK.shape[0],
        ids_TK.shape[1],
        first_token,
        num_tokens,
        num_decode,
        heat_KE[0],
        heat_KE[1],
        FROM_DEVICE=state is not None,
        BLOCK=_BLOCK,
    )


# One kernel for each type of ids, whatever the numbers and addresses are: nothing compiles while serving.
_NUMBERS = ["tokens", "top_k", "first", "num_tokens", "num_decode"]
_ADDRESSES = ["ids_at", "state_at", "prefill_at", "decode_at"]


@triton.jit(do_not_specialize=_NUMBERS, do_not_specialize_on_alignment=_ADDRESSES)  # type: ignore[untyped-decorator]
def _count(  # type: ignore[no-untyped-def]
    ids_at,
    state_at,
    tokens,
    top_k,
    first,
    num_tokens,
    num_decode,
    prefill_at,
    decode_at,
    FROM_DEVICE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    expert = tl.program_id(0)
    if FROM_DEVICE:
        first, num_tokens, num_decode = tl.load(state_at), tl.load(state_at + 1), tl.load(state_at + 2)
    first = tl.minimum(tl.maximum(first, 0), tokens)
    stop = tl.minimum(first + tl.maximum(num_tokens, 0), tokens)
    middle = tl.minimum(first + tl.maximum(num_decode, 0), stop)
    lanes = tl.arange(0, BLOCK)
    decode = tl.zeros((), tl.int32)
    prefill = tl.zeros((), tl.int32)
    for start in range(first * top_k, stop * top_k, BLOCK):
        pair = start + lanes
        mine = tl.load(ids_at + pair, mask=pair < stop * top_k, other=-1) == expert
        decode += tl.sum((mine & (pair < middle * top_k)).to(tl.int32))
        prefill += tl.sum((mine & (pair >= middle * top_k)).to(tl.int32))
    tl.store(decode_at + expert, tl.load(decode_at + expert) + decode)
    tl.store(prefill_at + expert, tl.load(prefill_at + expert) + prefill)
