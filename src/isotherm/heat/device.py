"""Counting ids in torch operations: for devices without a kernel of ours."""

from __future__ import annotations

import torch

from isotherm.numbers import Numbers


def count(ids_TK: torch.Tensor, numbers: Numbers, heat_KE: torch.Tensor) -> None:
    """Adds one for each real pair, without telling the host how many there are. ``numbers``: first_token,
    num_tokens, num_decode."""
    first_token, num_tokens, num_decode = (
        number.reshape(()) if isinstance(number, torch.Tensor) else number for number in numbers
    )
    experts = heat_KE.shape[1]
    flat = ids_TK.reshape(-1).long()
    row = torch.arange(len(flat), device=flat.device) // max(ids_TK.shape[1], 1) - first_token
    real = (flat >= 0) & (flat < experts) & (row >= 0) & (row < num_tokens)
    decode = real & (row < num_decode)
    index = flat.clamp(0, experts - 1)
    heat_KE[1].scatter_add_(0, index, decode.to(heat_KE.dtype))
    heat_KE[0].scatter_add_(0, index, (real & ~decode).to(heat_KE.dtype))
