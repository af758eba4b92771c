"""Tensors as arguments of the CPU's kernels.

To ask a tensor in Python for its type, device, strides, shape and address, one after the other, took a
tenth of what a batch of 128 tokens takes. Here a kernel's argument is read by one call of the C interface
that torch lends to others for that (DLPack's exchange API), while the interpreter is still held.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from llvmlite import binding, ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import NativeValue, intrinsic, overload, register_model, unbox

from isotherm.jit import int64_at

_SYMBOL = "isotherm_read_tensor"
_MAJOR = 1
"""The version of DLPack whose structs are laid out here."""
_FIELDS: dict[str, Any] = {
    "data": types.int64,
    "device_type": types.int32,
    "device": types.int32,
    "axes": types.int32,
    "code": types.uint8,
    "bits": types.uint8,
    "lanes": types.uint16,
    "shape": types.int64,
    "strides": types.int64,
    "offset": types.uint64,
}
"""``DLTensor``, pointers as integers."""
_CPU, _INT = 1, 0
"""As DLPack numbers devices and kinds of numbers."""


class _ExchangeAPI(ctypes.Structure):
    """``DLPackExchangeAPI``, up to what is called here."""


_ExchangeAPI._fields_ = [
    ("major", ctypes.c_uint32),
    ("minor", ctypes.c_uint32),
    ("older", ctypes.POINTER(_ExchangeAPI)),
    ("allocate", ctypes.c_void_p),
    ("from_object", ctypes.c_void_p),
    ("to_object", ctypes.c_void_p),
    ("read", ctypes.c_void_p),
]


def _lend_symbol() -> None:
    """Gives torch's function a name, by which kernels from numba's cache find it: its address is another in
    each process."""
    capsule: Any = torch.Tensor.__dlpack_c_exchange_api__
    address_of = ctypes.pythonapi.PyCapsule_GetPointer
    address_of.restype, address_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    api = _ExchangeAPI.from_address(address_of(capsule, b"dlpack_exchange_api"))
    while api.major != _MAJOR:
        if not api.older:
            raise ImportError(
                f"torch {torch.__version__} lends version {api.major} of DLPack's exchange API, and kernels "
                f"read version {_MAJOR}: install a newer isotherm or an older torch"
            )
        api = api.older.contents
    binding.add_symbol(_SYMBOL, api.read)


_lend_symbol()


class TensorType(types.Opaque):
    """A tensor, in the signature of a kernel."""


TENSOR = TensorType("tensor")


@register_model(TensorType)
class _TensorModel(models.StructModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, list(_FIELDS.items()))  # type: ignore[no-untyped-call]


@unbox(TensorType)  # type: ignore[no-untyped-call, untyped-decorator]
def _unbox_tensor(kind: Any, given: Any, context: Any) -> NativeValue:
    """What cannot be read (it has no strides, or no memory) is all zeros: a tensor of no axes."""
    builder, struct = context.builder, context.context.get_value_type(kind)
    place = cgutils.alloca_once_value(builder, ir.Constant(struct, None))  # type: ignore[no-untyped-call]
    signature = ir.FunctionType(ir.IntType(32), [context.pyapi.pyobj, struct.as_pointer()])
    read = cgutils.get_or_insert_function(builder.module, signature, _SYMBOL)  # type: ignore[no-untyped-call]
    failed = builder.icmp_signed("!=", builder.call(read, [given, place]), ir.IntType(32)(0))
    with builder.if_then(failed, likely=False):
        context.pyapi.err_clear()
        builder.store(ir.Constant(struct, None), place)
    return NativeValue(builder.load(place))  # type: ignore[no-untyped-call]


def _reader(name: str) -> Any:
    @intrinsic
    def read(context: Any, given: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            proxy = cgutils.create_struct_proxy(signature.args[0])(context, builder, value=args[0])  # type: ignore[no-untyped-call]
            return getattr(proxy, name)

        return _FIELDS[name](given), generate

    return read


_data, _offset, _device_type = _reader("data"), _reader("offset"), _reader("device_type")
_axes, _code, _bits, _lanes = _reader("axes"), _reader("code"), _reader("bits"), _reader("lanes")
_shape, _strides = _reader("shape"), _reader("strides")


def rows_of(given: Any) -> tuple[int, int, int, int]:
    """Address, rows, columns and bits of the integers of a contiguous tensor of two axes, in the CPU's
    memory. No bits: it is no such tensor."""
    if not (given.is_cpu and given.dim() == 2 and given.is_contiguous() and given.dtype.is_signed):
        return 0, 0, 0, 0
    rows, columns = given.shape
    return given.data_ptr(), rows, columns, 0 if given.is_floating_point() else 8 * given.itemsize


@overload(rows_of, strict=False)
def _rows_of(given: Any) -> Any:
    def read(given: Any) -> Any:
        if _axes(given) != 2 or _device_type(given) != _CPU or _code(given) != _INT or _lanes(given) != 1:
            return 0, 0, 0, 0
        shape, strides = int64_at(_shape(given), 2), int64_at(_strides(given), 2)
        rows, columns = shape[0], shape[1]
        # The stride of an axis of one element says nothing, and none does where there are no elements.
        is_dense = (strides[1] == 1 or columns == 1) and (strides[0] == columns or rows == 1)
        if not (is_dense or rows * columns == 0):
            return 0, 0, 0, 0
        if _data(given) == 0 and rows * columns > 0:  # a fake tensor, of a compiler
            return 0, 0, 0, 0
        return _data(given) + np.int64(_offset(given)), rows, columns, np.int64(_bits(given))

    return read
