"""What a torch operation reads and writes, as its schema says."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

_ONLY_SHAPES = frozenset(
    [
        *("empty_like", "zeros_like", "ones_like", "full_like"),
        *("new_empty", "new_empty_strided", "new_zeros", "new_ones", "new_full"),
    ]
)
"""Operations that look at the shape of what they are given, not at its data."""


def leaves(tree: Any) -> Iterator[Any]:
    """What tuples, lists and dicts hold, at any depth."""
    if isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from leaves(branch)
    elif isinstance(tree, dict):
        yield from leaves(tuple(tree.values()))
    else:
        yield tree


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """The same tuples, lists and dicts, of what ``function`` makes of each leaf. As torch's own, which knows
    more kinds of trees and takes most of the time of a small operation."""
    if isinstance(tree, (tuple, list)):
        return type(tree)([mapped(function, branch) for branch in tree])
    if isinstance(tree, dict):
        return {name: mapped(function, branch) for name, branch in tree.items()}
    return function(tree)


@functools.cache
def composition_of(func: Any) -> Callable[..., Any] | None:
    """What to call instead of an operation that is made of others: torch's composite ones, and operators
    made with ``torch.library.custom_op``, whose Python a device runs at launch."""
    kernel = "CompositeImplicitAutograd"
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), kernel):
        decompose: Callable[..., Any] = func.decompose
        return decompose
    definition = torch._library.custom_ops.OPDEFS.get(func.name())
    return None if definition is None else definition._init_fn


@functools.cache
def name_of(func: Any) -> str:
    """``add_`` of ``aten::add_.Tensor``."""
    name: str = func._schema.name
    return name.partition("::")[2]


def text_of(tensor: torch.Tensor) -> str:
    """Type and shape, as findings show them."""
    return shape_text(tensor.dtype, tensor.shape)


def shape_text(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


@functools.cache
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
