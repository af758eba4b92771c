"""The engine's expert weights, seen as bits per slot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import torch

from isotherm.mover.schedule import Fill
from isotherm.streams import Backend

Weights: TypeAlias = Sequence[Mapping[str, torch.Tensor | Sequence[torch.Tensor]]]
"""For each layer, named tensors ``[slots_per_rank, ...]`` or lists of one tensor per local slot."""

Bits: TypeAlias = tuple[torch.Tensor, ...]
"""The tensors of one expert in the order of their names, as integers of the elements' size: copied bit for
bit, whatever number they stand for."""

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_ALIGNMENT = 16
"""Bytes; every tensor of a packed expert begins at a multiple."""


@dataclass(frozen=True)
class _Piece:
    """A tensor of an expert, and where it lies when the expert is packed."""

    shape: torch.Size
    dtype: torch.dtype
    offset: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class ExpertWeights:
    """Views of the weights in each local slot, of any dtype and any strides, and of buffers beside them.

    The engine owns the tensors; they keep their addresses while the balancer lives.

    Raises:
        ValueError: another number of layers or slots, slots that differ or share memory, or a dtype whose
            elements have no integer of their size; the message names layer and tensor.
    """

    def __init__(self, weights: Weights, *, layers: int, slots_per_rank: int) -> None:
        if len(weights) != layers:
            raise ValueError(f"weights of {len(weights)} layers given, the model has {layers}")
        self._slots_per_rank = slots_per_rank
        self._slots_LS: list[list[Bits]] = []
        self._pieces_L: list[tuple[_Piece, ...]] = []
        for layer, named in enumerate(weights):
            for name, tensors in named.items():
                _check_alike(layer, name, tensors, slots_per_rank)
                _check_apart(layer, name, tensors)
            names = sorted(named)
            rows = [tuple(_bits(named[name][slot]) for name in names) for slot in range(slots_per_rank)]
            self._slots_LS.append(rows)
            self._pieces_L.append(_pieces(rows[0]))
        sizes = {sum(piece.nbytes for piece in pieces) for pieces in self._pieces_L}
        if len(sizes) != 1:
            raise ValueError(f"experts of different sizes {sorted(sizes)} (bytes): layers must be alike")
        self.bytes_per_expert: int = sizes.pop()
        """Bytes that one move carries."""
        self.packed_bytes: int = max(map(_end, self._pieces_L))
        """Bytes of a buffer that holds an expert of any layer."""
        self.tensors: int = max(map(len, self._pieces_L))
        """Tensors of one expert, at most."""
        self._buffers: list[torch.Tensor] = []

    @property
    def signature(self) -> str:
        """What an expert is made of: the same on every rank, or weights cannot move."""
        pieces = [[(list(p.shape), str(p.dtype)) for p in pieces] for pieces in self._pieces_L]
        return str(pieces)

    @property
    def lie_sendable(self) -> bool:
        """Whether all slots can be sent from, and received into, host memory as they are."""
        return all(can_send(view) for view in self._all())

    @property
    def lie_contiguous(self) -> bool:
        """Whether no slot has strides of its own."""
        return all(view.is_contiguous() for view in self._all())

    def make_buffers(self, count: int, backend: Backend) -> list[torch.Tensor]:
        """Memory beside the slots, on the same device, for an expert each."""
        with torch.inference_mode(False):
            return [
                torch.zeros(self.packed_bytes, dtype=torch.uint8, device=backend.device) for _ in range(count)
            ]

    def lend_buffers(self, buffers: Sequence[torch.Tensor]) -> None:
        """Where fills that name a buffer arrive, uint8 [packed_bytes] each."""
        self._buffers = list(buffers)

    def views(self, layer: int, local_slot: int) -> Bits:
        """The bits of a slot."""
        return self._slots_LS[layer][local_slot]

    def packed(self, layer: int, buffer: torch.Tensor) -> Bits:
        """The bits of an expert of ``layer`` that lies in ``buffer``, uint8 [packed_bytes]; contiguous."""
        return tuple(
            buffer[piece.offset : piece.offset + piece.nbytes].view(piece.dtype).view(piece.shape)
            for piece in self._pieces_L[layer]
        )

    def source(self, fill: Fill) -> Bits:
        """What ``fill`` is read from, on the rank of its source."""
        return self._at(fill.layer, fill.source, fill.source_buffer)

    def target(self, fill: Fill) -> Bits:
        """Where ``fill`` arrives, on the rank of its target."""
        return self._at(fill.layer, fill.target, fill.buffer)

    def _all(self) -> Iterator[torch.Tensor]:
        return (view for row in self._slots_LS for slot in row for view in slot)

    def _at(self, layer: int, slot: int, buffer: int) -> Bits:
        if buffer < 0:
            return self.views(layer, slot % self._slots_per_rank)
        return self.packed(layer, self._buffers[buffer])


def can_send(view: torch.Tensor) -> bool:
    """Whether the bytes of ``view`` lie in host memory, one behind the other."""
    return view.device.type == "cpu" and view.is_contiguous()


def as_bytes(view: torch.Tensor) -> torch.Tensor:
    """A contiguous view's bytes, uint8 of one dimension."""
    return view.view(-1).view(torch.uint8)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().view(_INTEGERS[tensor.element_size()])


def _pieces(slot: Bits) -> tuple[_Piece, ...]:
    pieces: list[_Piece] = []
    for view in slot:
        offset = -(-_end(pieces) // _ALIGNMENT) * _ALIGNMENT
        pieces.append(_Piece(view.shape, view.dtype, offset))
    return tuple(pieces)


def _end(pieces: Sequence[_Piece]) -> int:
    return pieces[-1].offset + pieces[-1].nbytes if pieces else 0


def _check_alike(
    layer: int, name: str, tensors: torch.Tensor | Sequence[torch.Tensor], slots_per_rank: int
) -> None:
    if len(tensors) != slots_per_rank:
        raise ValueError(
            f"layer {layer}, {name!r}: {len(tensors)} slots given, this rank has {slots_per_rank}"
        )
    first = tensors[0]
    if first.element_size() not in _INTEGERS:
        raise ValueError(
            f"layer {layer}, {name!r}: elements of {first.dtype} have {first.element_size()} bytes: lend it "
            f"as a view of a dtype with {', '.join(map(str, _INTEGERS))} bytes"
        )
    for slot, tensor in enumerate(tensors):
        if (tensor.shape, tensor.dtype) != (first.shape, first.dtype):
            raise ValueError(
                f"layer {layer}, {name!r}: slot {slot} is {tensor.dtype} {tuple(tensor.shape)}, slot 0 "
                f"{first.dtype} {tuple(first.shape)}: experts must be alike"
            )


def _check_apart(layer: int, name: str, tensors: torch.Tensor | Sequence[torch.Tensor]) -> None:
    """No element lies in two places of a slot, or in two slots: filling one would change the other."""
    seen: dict[int, int] = {}
    for slot, tensor in enumerate(tensors):
        is_expanded = any(
            size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
        other = seen.setdefault(tensor.data_ptr(), slot)
        if tensor.numel() and (is_expanded or other != slot):
            raise ValueError(
                f"layer {layer}, {name!r}: slot {slot} shares memory with slot {other}: lend each slot "
                "weights of its own; clone() an expanded tensor"
            )
