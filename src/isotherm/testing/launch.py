"""Torch operations on tensors of the simulated device are launched, not executed.

What torch is asked to do with such a tensor arrives in ``launch_operation``, which
allocates the result, finds out from the operation's schema what is read and written, and enqueues the
operation on the stream that is current. Operations torch composes of others are taken apart first.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from isotherm.testing.device import Device
from isotherm.testing.operators import (
    composition_of,
    is_view,
    leaves,
    mapped,
    name_of,
    needs_data_for_shape,
    text_of,
    touched,
)
from isotherm.testing.tensors import CPU, DEVICE, SimTensor, is_on_device, new_tensor, touches_of

aten = torch.ops.aten


class FactoryMode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hook
    """Makes tensors of the device where a program asks for them, and sees every other operation."""

    def __init__(self, simulated: Device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._simulated = simulated

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if SimTensor in types or _asks_for_device(args, kwargs):
            parts = composition_of(func)
            if parts is not None:
                with self:  # what it is composed of comes here too
                    return parts(*args, **kwargs)
            return launch_operation(self._simulated, func, args, kwargs)
        for leaf in leaves((args, kwargs)):
            if isinstance(leaf, torch.Tensor) and leaf.is_meta:
                raise RuntimeError(
                    f"{name_of(func)}: a tensor {text_of(leaf)} that torch made on the device without asking "
                    "the simulation: make it on the host and copy it, torch.tensor(...).to(device)"
                )
        return func(*args, **kwargs)


def launch_operation(simulated: Device, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Launches one operation, or does it where it is one of the host's."""
    parts = composition_of(func)
    if parts is not None:
        return parts(*args, **kwargs)
    if func is aten.is_pinned.default:
        return args[0].lease.allocation.is_host
    if is_view(func):
        return _view(func, args, kwargs)
    if func in (aten.copy_.default, aten._to_copy.default):
        return _copy(simulated, func, args, kwargs)
    on_device = [leaf for leaf in leaves((args, kwargs)) if is_on_device(leaf)]
    if not on_device and not _asks_for_device(args, kwargs):
        return _do_on_host(simulated, func, args, kwargs)
    _refuse_strangers(func, args, kwargs)
    if needs_data_for_shape(func, args) or not _gives_tensors(func):
        return _launch_and_wait(simulated, func, args, kwargs)
    return _launch(simulated, func, args, kwargs, _planned(func, args, kwargs))


# -- kinds of operations ------------------------------------------------------------------------------


def _view(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Another shape of the same memory: no operation."""
    base = next(leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, SimTensor))
    with torch.inference_mode(False), torch.no_grad():
        views = func(*_raw(args), **_raw(kwargs))
    # A view is an inference tensor if what it shows is, whatever mode it is made in.
    with torch.inference_mode(base.is_inference()):
        return mapped(lambda view: SimTensor(view, base.lease, base.simulated), views)


def _copy(simulated: Device, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A copy waits for the device if it crosses to or from the host and is not told otherwise; one that
    crosses from plain memory has read it when it returns, one to plain memory has always arrived."""
    is_in_place = func is aten.copy_.default
    source = args[1] if is_in_place else args[0]
    if is_in_place:
        is_async = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        target = args[0]
    else:
        is_async = kwargs.get("non_blocking", False)
        target = _copy_target(simulated, source, kwargs, is_async=is_async)
    from_device, to_device = is_on_device(source), is_on_device(target)
    if not from_device and not to_device:
        _do_on_host(simulated, aten.copy_.default, (target, source), {})
        return target
    to_plain = not isinstance(target, SimTensor)
    source_raw = source.raw if isinstance(source, SimTensor) else source.clone()
    target_raw = target if to_plain else target.raw
    touches = touches_of([source], writes=False) + touches_of([target], writes=True)
    simulated.enqueue(simulated.stream, "copy", lambda: _assign(target_raw, source_raw), touches)
    if from_device != to_device and (to_plain or not is_async):
        simulated.wait(simulated.record(simulated.stream), "a copy that crosses to or from the host")
    return target


def _copy_target(simulated: Device, source: torch.Tensor, kwargs: dict[str, Any], *, is_async: bool) -> Any:
    dtype = kwargs.get("dtype") or source.dtype
    device = torch.device(kwargs.get("device") or source.device)
    with torch.inference_mode():
        plan = torch.empty_like(_plan(source), dtype=dtype)
    if device == CPU and not (is_async and is_on_device(source)):
        return torch.empty_strided(plan.shape, plan.stride(), dtype=dtype)
    # As torch does: a copy to the host that nobody waits for lands in pinned memory.
    return new_tensor(simulated, plan.shape, dtype, is_host=device == CPU, strides=plan.stride())


def _do_on_host(simulated: Device, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operation on pinned memory, by the calling thread."""
    reads, writes = touched(func, args, kwargs)
    results: list[Any] = []

    def run() -> None:
        with torch.inference_mode(False), torch.no_grad():
            results.append(func(*_raw(args), **_raw(kwargs)))

    touches = touches_of(reads, writes=False) + touches_of(writes, writes=True)
    if touches:
        simulated.do(name_of(func), run, touches)
    else:
        run()
    return _as_given(results[0], args, kwargs)


def _launch(simulated: Device, func: Any, args: Sequence[Any], kwargs: dict[str, Any], planned: Any) -> Any:
    """Enqueues an operation on memory of the device; its fresh results are allocated as ``planned``."""
    reads, writes = touched(func, args, kwargs)
    fresh: list[tuple[int, SimTensor]] = []

    def result_of(index: int, plan: torch.Tensor) -> SimTensor:
        tensor = new_tensor(simulated, plan.shape, plan.dtype, strides=plan.stride())
        fresh.append((index, tensor))
        return tensor

    if planned is None:  # it writes to what it is given, and gives that back or nothing
        given = [writes[index] for index in range(len(func._schema.returns))]
        results: Any = given[0] if len(given) == 1 else tuple(given) or None
    elif isinstance(planned, torch.Tensor):
        results = result_of(0, planned)
    else:
        results = type(planned)(result_of(index, plan) for index, plan in enumerate(planned))
    touches = touches_of(reads, writes=False)
    touches += touches_of([*writes, *(tensor for _, tensor in fresh)], writes=True)
    if name_of(func).startswith(("empty", "new_empty")):
        return results
    targets = [(index, tensor.raw) for index, tensor in fresh]
    run = _execution(func, _pointers(args), _pointers(kwargs), targets)
    simulated.enqueue(simulated.stream, name_of(func), run, touches)
    return results


def _execution(
    func: Any, args: Any, kwargs: Any, targets: Sequence[tuple[int, torch.Tensor]]
) -> Callable[[], None]:
    """What runs later, with pointers alone."""

    def run() -> None:
        result = func(*args, **kwargs)
        results = (result,) if isinstance(result, torch.Tensor) else result
        for index, target in targets:
            _assign(target, results[index])

    return run


def _launch_and_wait(simulated: Device, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """An operation whose result the host has to know: a number, or how many elements there are."""
    reads, writes = touched(func, args, kwargs)
    results: list[Any] = []
    raw_args, raw_kwargs = _pointers(args), _pointers(kwargs)
    if not _gives_tensors(func):
        touches = touches_of(reads, writes=False) + touches_of(writes, writes=True)
        simulated.enqueue(
            simulated.stream, name_of(func), lambda: results.append(func(*raw_args, **raw_kwargs)), touches
        )
        simulated.wait(simulated.record(simulated.stream), name_of(func))
        return results[0]
    simulated.wait(simulated.record(simulated.stream), f"the shape of {name_of(func)}")
    with torch.inference_mode():
        planned = None if writes else func(*raw_args, **raw_kwargs)
    return _launch(simulated, func, args, kwargs, planned)


# -- parts ----------------------------------------------------------------------------------------------


def _planned(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Shapes and types of fresh results, as torch computes them without data; None where there are none.
    Remembered, since that takes longer than everything else."""
    if all(entry.alias_info is not None for entry in func._schema.returns):
        return None
    key = (func, _trait(args), _trait(sorted(kwargs.items())))
    if key not in _plans:
        with torch.inference_mode():
            _plans[key] = func(*mapped(_plan, args), **mapped(_plan, kwargs))
    return _plans[key]


_plans: dict[Hashable, Any] = {}


def _plan(leaf: Any) -> Any:
    if isinstance(leaf, SimTensor):
        raw = leaf.raw
        return torch.empty_strided(raw.shape, raw.stride(), dtype=raw.dtype, device=DEVICE)
    return leaf


def _trait(leaf: Any) -> Hashable:
    """What the shape of a result may hang on. A number's type counts: 1 and 1.0 are equal."""
    if isinstance(leaf, (tuple, list)):
        return tuple(map(_trait, leaf))
    if isinstance(leaf, torch.Tensor):
        raw = leaf.raw if isinstance(leaf, SimTensor) else leaf
        return (tuple(raw.shape), raw.stride(), raw.dtype, type(leaf))
    return (type(leaf), leaf)


def _raw(tree: Any) -> Any:
    """Pointers instead of tensors, and the CPU, where the simulation computes, instead of the device."""

    def pointer(leaf: Any) -> Any:
        if isinstance(leaf, SimTensor):
            return leaf.raw
        if isinstance(leaf, torch.device) and leaf == DEVICE:
            return CPU
        return leaf

    return mapped(pointer, tree)


def _pointers(tree: Any) -> Any:
    """As ``_raw``; numbers that lie on the host are read now."""

    def frozen(leaf: Any) -> Any:
        is_plain = isinstance(leaf, torch.Tensor) and not isinstance(leaf, SimTensor)
        return leaf.clone() if is_plain else leaf

    return _raw(mapped(frozen, tree))


def _as_given(result: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The tensor that the caller passed, where the operation returned its pointer."""
    for leaf in leaves((args, kwargs)):
        if isinstance(leaf, SimTensor) and leaf.raw is result:
            return leaf
    return result


def _assign(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source)


def _asks_for_device(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    device = kwargs.get("device")
    return device is not None and torch.device(device) == DEVICE


def _gives_tensors(func: Any) -> bool:
    return all("Tensor" in str(entry.type) for entry in func._schema.returns)


def _refuse_strangers(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """Raises, as a device does, for operands on the host that are more than a number."""
    reads, writes = touched(func, args, kwargs)
    strangers = [operand for operand in (*reads, *writes) if operand.dim() and not is_on_device(operand)]
    for stranger in strangers:
        raise RuntimeError(
            f"{name_of(func)}: a tensor {text_of(stranger)} on the host meets tensors on the simulated "
            "device: copy it there first"
        )
