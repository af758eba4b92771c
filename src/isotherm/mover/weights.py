"""The engine's expert weights, seen as bytes per slot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

Weights: TypeAlias = Sequence[Mapping[str, torch.Tensor | Sequence[torch.Tensor]]]
"""For each layer, named tensors ``[slots_per_rank, ...]`` or lists of one tensor per local slot."""


class ExpertWeights:
    """Byte views of the weights in each local slot.

    The engine owns the tensors; they keep their addresses while the balancer lives.

    Raises:
        ValueError: another number of layers or slots, layers that differ, or a slot that is not
            contiguous; the message names layer and tensor.
    """

    def __init__(self, weights: Weights, *, layers: int, slots_per_rank: int) -> None:
        if len(weights) != layers:
            raise ValueError(f"weights of {len(weights)} layers given, the model has {layers}")
        self._slots_LS: list[list[tuple[torch.Tensor, ...]]] = []
        for layer, named in enumerate(weights):
            for name, tensors in named.items():
                if len(tensors) != slots_per_rank:
                    raise ValueError(
                        f"layer {layer}, {name!r}: {len(tensors)} slots given, this rank has {slots_per_rank}"
                    )
            self._slots_LS.append(
                [
                    tuple(_bytes(named[name][slot], layer, name) for name in sorted(named))
                    for slot in range(slots_per_rank)
                ]
            )
        sizes = {sum(view.numel() for view in slot) for row in self._slots_LS for slot in row}
        if len(sizes) != 1:
            raise ValueError(f"slots of different sizes {sorted(sizes)} (bytes): experts must be alike")
        self.bytes_per_expert: int = sizes.pop()
        """Bytes that one move carries."""

    def views(self, layer: int, local_slot: int) -> tuple[torch.Tensor, ...]:
        """One flat uint8 view per tensor, in the order of their names."""
        return self._slots_LS[layer][local_slot]


def _bytes(tensor: torch.Tensor, layer: int, name: str) -> torch.Tensor:
    if not tensor.is_contiguous():
        raise ValueError(
            f"layer {layer}, {name!r}: the weights of a slot must be contiguous; they have strides "
            f"{tensor.stride()}"
        )
    return tensor.detach().view(-1).view(torch.uint8)
