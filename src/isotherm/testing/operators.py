"""What a torch operation reads and writes, as its schema says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

_ONLY_SHAPES = frozenset(
    [
        *("empty_like", "zeros_like", "ones_like", "full_like"),
        *("new_empty", "new_empty_strided", "new_zeros", "new_ones", "new_full"),
    ]
)
"""Operations that look at the shape of what they are given, not at its data."""


def name_of(func: Any) -> str:
    """``add_`` of ``aten::add_.Tensor``."""
    name: str = func._schema.name
    return name.partition("::")[2]


def text_of(tensor: torch.Tensor) -> str:
    """Type and shape, as findings show them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def is_view(func: Any) -> bool:
    """Whether the result is the same memory in another shape."""
    return bool(func.is_view) or name_of(func) in ("lift_fresh", "detach_")


def touched(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The tensors it reads, and those it writes (and may read): operands and ``out=``."""
    reads: list[Any] = []
    writes: list[Any] = []
    is_shape_only = name_of(func) in _ONLY_SHAPES or is_view(func)
    for argument, value in _arguments(func, args, kwargs):
        alias = argument.alias_info
        if alias is not None and alias.is_write and not is_view(func):
            writes += _tensors(value)
        elif not is_shape_only:
            reads += _tensors(value)
    return reads, writes


def needs_data_for_shape(func: Any, args: Sequence[Any]) -> bool:
    """Whether the shape of the result hangs on data, so that the host must wait for it."""
    if name_of(func) in ("index", "index_put", "index_put_"):
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.dynamic_output_shape in func.tags


def _arguments(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    for index, argument in enumerate(func._schema.arguments):
        if index < len(args):
            yield argument, args[index]
        elif argument.name in kwargs:
            yield argument, kwargs[argument.name]


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [entry for entry in value if isinstance(entry, torch.Tensor)]
    return []
