"""The same choice as `kernels.map_and_count`, in torch operations: for devices without our kernel."""

from __future__ import annotations

import torch

from isotherm.numbers import Numbers
from isotherm.router.layout import LayerTables
from isotherm.router.rounding import MASK, RANK_STRIDE, STEP_STRIDE


def map_and_count(
    ids_TK: torch.Tensor,
    numbers: Numbers,
    base: int,
    tables: LayerTables,
    heat_KE: torch.Tensor,
    received_P: torch.Tensor,
) -> torch.Tensor:
    """Slots for ``ids_TK``, same shape and dtype; counts are added in place. No host synchronisation.

    ``numbers``: step, first_token, num_tokens, num_decode. ``base`` is that of step 0.

    Bit for bit what the CPU kernel gives. The ordinal of a pair among those of its expert comes from a
    stable sort by expert; its replica from a search in the rows of all experts at once.
    """
    step, first_token, num_tokens, num_decode = (
        number.reshape(()) if isinstance(number, torch.Tensor) else number for number in numbers
    )
    offsets_E1, slots_P, ends_P, *_ = tables
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
    offset_P = (base + step * STEP_STRIDE + expert_P * RANK_STRIDE) & MASK
    limit_P = (ends_P * count_E[expert_P.clamp_max(experts - 1)] + offset_P) >> 32
    stride = flat.numel() + 1
    row = torch.searchsorted(expert_P * stride + limit_P, key * stride + ordinal, right=True)
    chosen = slots_P[row.clamp_max(len(slots_P) - 1)].long()
    slots = torch.where(valid, chosen, -1)

    token = torch.arange(len(flat), device=flat.device) // max(ids_TK.shape[1], 1) - first_token
    real = valid & (token >= 0) & (token < num_tokens)
    decode = real & (token < num_decode)
    index = key.clamp_max(experts - 1)
    heat_KE[1].scatter_add_(0, index, decode.to(heat_KE.dtype))
    heat_KE[0].scatter_add_(0, index, (real & ~decode).to(heat_KE.dtype))
    received_P.scatter_add_(0, slots.clamp_min(0), real.to(received_P.dtype))
    return slots.view(ids_TK.shape).to(ids_TK.dtype)
