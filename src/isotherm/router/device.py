"""The same choice as `kernels.map_and_count`, in torch operations: for devices without our kernel."""

from __future__ import annotations

import torch

from isotherm.router.kernels import MASK, RANK_STRIDE


def map_and_count(
    ids_TK: torch.Tensor,
    num_tokens: int,
    num_decode: int,
    base: int,
    offsets_E1: torch.Tensor,
    slots_P: torch.Tensor,
    ends_P: torch.Tensor,
    prefill_E: torch.Tensor,
    decode_E: torch.Tensor,
    received_P: torch.Tensor,
) -> torch.Tensor:
    """Slots for ``ids_TK``, same shape and dtype; counts are added in place. No host synchronisation.

    Bit for bit what the CPU kernel gives. The ordinal of a pair among those of its expert comes from a
    stable sort by expert; its replica from a search in the rows of all experts at once.
    """
    experts = len(offsets_E1) - 1
    flat = ids_TK.reshape(-1).long()
    valid = flat >= 0
    # Pairs without an expert sort behind all others, into a row of their own.
    key = torch.where(valid, flat, experts)
    count_E = torch.zeros(experts + 1, dtype=torch.int64, device=flat.device)
    count_E.scatter_add_(0, key, torch.ones_like(key))
    sorted_key, order = torch.sort(key, stable=True)
    starts_E = count_E.cumsum(0) - count_E
    ordinal = torch.empty_like(flat)
    ordinal[order] = torch.arange(len(flat), device=flat.device) - starts_E[sorted_key]

    rows_P = torch.arange(len(slots_P), device=flat.device)
    # Empty slots lie behind the last expert's row, and so does what searches for no expert.
    expert_P = torch.searchsorted(offsets_E1.long(), rows_P, right=True) - 1
    offset_P = (base + expert_P * RANK_STRIDE) & MASK
    limit_P = (ends_P * count_E[expert_P.clamp_max(experts - 1)] + offset_P) >> 32
    stride = flat.numel() + 1
    row = torch.searchsorted(expert_P * stride + limit_P, key * stride + ordinal, right=True)
    chosen = slots_P[row.clamp_max(len(slots_P) - 1)].long()
    slots = torch.where(valid, chosen, -1)

    token = torch.arange(len(flat), device=flat.device) // max(ids_TK.shape[1], 1)
    real = valid & (token < num_tokens)
    decode = real & (token < num_decode)
    index = flat.clamp_min(0)
    decode_E.scatter_add_(0, index, decode.to(decode_E.dtype))
    prefill_E.scatter_add_(0, index, (real & ~decode).to(prefill_E.dtype))
    received_P.scatter_add_(0, slots.clamp_min(0), real.to(received_P.dtype))
    return slots.view(ids_TK.shape).to(ids_TK.dtype)
