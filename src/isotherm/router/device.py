"""The same choice as `kernels.map_and_count`, in torch operations: for devices without our kernel."""

from __future__ import annotations

import torch

from isotherm.router.rounding import MASK, RANK_STRIDE


def map_and_count(
    ids_TK: torch.Tensor,
    first_token: int | torch.Tensor,
    num_tokens: int | torch.Tensor,
    num_decode: int | torch.Tensor,
    base: int | torch.Tensor,
    offsets_E1: torch.Tensor,
    slots_P: torch.Tensor,
    ends_P: torch.Tensor,
    heat_KE: torch.Tensor,
    received_P: torch.Tensor,
) -> torch.Tensor:
    """Slots for ``ids_TK``, same shape and dtype; counts are added in place. No host synchronisation,
    whether the scalars are numbers or tensors of one element on the device.

    Bit for bit what the CPU kernel gives. The ordinal of a pair among those of its expert comes from a
    stable sort by expert; its replica from a search in the rows of all experts at once.
    """
    experts = len(offsets_E1) - 1
    flat = ids_TK.reshape(-1).long()
    valid = (flat >= 0) & (flat < experts)
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

    real, decode = rows_of(ids_TK, first_token, num_tokens, num_decode)
    real &= valid
    decode &= valid
    index = key.clamp_max(experts - 1)
    heat_KE[1].scatter_add_(0, index, decode.to(heat_KE.dtype))
    heat_KE[0].scatter_add_(0, index, (real & ~decode).to(heat_KE.dtype))
    received_P.scatter_add_(0, slots.clamp_min(0), real.to(received_P.dtype))
    return slots.view(ids_TK.shape).to(ids_TK.dtype)


def rows_of(
    ids_TK: torch.Tensor,
    first_token: int | torch.Tensor,
    num_tokens: int | torch.Tensor,
    num_decode: int | torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """For each pair, flat: whether its row is a real token, and whether it is a decode token."""
    pairs = torch.arange(ids_TK.numel(), device=ids_TK.device)
    row = pairs // max(ids_TK.shape[1], 1) - first_token
    real = (row >= 0) & (row < num_tokens)
    return real, real & (row < num_decode)
