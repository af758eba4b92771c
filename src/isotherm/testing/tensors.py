"""Tensors of the simulated device: wrappers around a pointer, over memory that somebody leases."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from isotherm.testing.device import Device
from isotherm.testing.extents import Extent
from isotherm.testing.memory import Lease
from isotherm.testing.operators import leaves, shape_text, text_of
from isotherm.testing.queues import Touch

DEVICE = torch.device("meta")
"""What tensors of the simulated device say they are on: torch has no kernels there, so nothing can run
behind the simulation's back."""

CPU = torch.device("cpu")


class SimTensor(torch.Tensor):
    """A tensor over simulated memory: of the device, or pinned, which the program may read by itself too."""

    raw: torch.Tensor
    lease: Lease
    simulated: Device

    @staticmethod
    def __new__(cls, raw: torch.Tensor, lease: Lease, simulated: Device) -> SimTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=CPU if lease.allocation.is_host else DEVICE,
        )
        tensor.raw, tensor.lease, tensor.simulated = raw, lease, simulated
        return tensor

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares it without cls
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        tensor = next(leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, SimTensor))
        return tensor.simulated.dispatch(tensor.simulated, func, args, kwargs)

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func in _HOST_READS:
                tensor = args[0]
                if not tensor.lease.allocation.is_host:
                    return func(tensor.cpu() if func is torch.Tensor.tolist else tensor, *args[1:])
                tensor.simulated.do(func.__name__, _nothing, [touch_of(tensor, writes=False)])
                read = func(tensor.raw, *args[1:], **(kwargs or {}))
                if not isinstance(read, list):  # an array keeps the memory that it shows
                    weakref.finalize(read, _let_go, tensor.lease).atexit = False
                return read
            return func(*args, **(kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"SimTensor({text_of(self)})"


_HOST_READS = (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__)


def new_tensor(
    simulated: Device,
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    is_host: bool = False,
    strides: Sequence[int] | None = None,
) -> SimTensor:
    """Fresh memory, which holds nothing of use; contiguous without ``strides``."""
    if strides is None:
        strides = [math.prod(shape[dim + 1 :]) for dim in range(len(shape))]
    last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    nbytes = 0 if 0 in shape else (last + 1) * dtype.itemsize
    allocation = simulated.allocate(nbytes, shape_text(dtype, shape), is_host=is_host)
    raw = simulated.arena.tensor(allocation, shape, strides, dtype)
    return SimTensor(raw, Lease(allocation, simulated.arena.freed), simulated)


def known(tensor: torch.Tensor) -> SimTensor:
    """The tensor, as one of the simulation's.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(tensor, SimTensor):
        raise ValueError(
            f"a tensor {text_of(tensor)} on {tensor.device} given, which is none of the simulation's: "
            "make it on simulation.device, within the simulation"
        )
    return tensor


def touches_of(tensors: Sequence[torch.Tensor], *, writes: bool) -> list[Touch]:
    """The bytes of those that the simulation knows."""
    return [touch_of(tensor, writes=writes) for tensor in tensors if isinstance(tensor, SimTensor)]


def touch_of(tensor: SimTensor, *, writes: bool) -> Touch:
    allocation = tensor.lease.allocation
    extent = Extent.of_tensor(tensor.raw, origin=allocation.start)
    return Touch(allocation, extent, writes, text_of(tensor))


def is_on_device(leaf: object) -> bool:
    return isinstance(leaf, SimTensor) and not leaf.lease.allocation.is_host


def _nothing() -> None:
    pass


def _let_go(lease: Lease) -> None:
    pass
