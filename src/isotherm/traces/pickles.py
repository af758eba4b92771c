"""Files of ``torch.save``, read without torch and without pickle.

Pickle is a program, and running one from elsewhere runs whatever it says. Here its opcodes are decoded by
`pickletools` and carried out on a stack of our own that knows containers, numbers, strings, and how to make
an array of a storage. Anything else ends in an error; nothing is imported, and nothing is called.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isotherm.traces.npy import read_zip
from isotherm.traces.problems import LARGEST_BYTES, problem, shortened

_REBUILD = "torch._utils _rebuild_tensor_v2"
_ORDERED = "collections OrderedDict"
_BFLOAT16 = "bfloat16"
_STORAGES = {
    "torch DoubleStorage": "<f8", "torch FloatStorage": "<f4", "torch HalfStorage": "<f2",
    "torch BFloat16Storage": _BFLOAT16, "torch LongStorage": "<i8", "torch IntStorage": "<i4",
    "torch ShortStorage": "<i2", "torch CharStorage": "i1", "torch ByteStorage": "u1",
    "torch BoolStorage": "?",
}  # fmt: skip
_ADMITTED = {_REBUILD, _ORDERED, *_STORAGES}


@dataclass(frozen=True)
class _Name:
    """A name of Python that a pickle refers to: only ever compared, never looked up."""

    name: str


_MARK = object()


def read_torch_file(path: Path) -> Any:
    """What ``torch.save`` wrote: dicts, lists, tuples, strings, numbers, and tensors as numpy arrays.

    Raises:
        ValueError: it is no such file, is damaged, or refers to anything but the above; the message names
            what it refers to.
    """
    members = read_zip(path)
    programs = [name for name in members if name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise problem(path, "", "not a file of torch.save: it has no data.pkl, or several")
    folder = programs[0].removesuffix("data.pkl")
    if members.get(f"{folder}byteorder", b"little") != b"little":
        raise problem(path, f"{folder}byteorder", "written on a big-endian machine, which is not read")
    machine = _Machine(members, f"{folder}data/")
    try:
        with warnings.catch_warnings():
            # Strings of opcodes that are not admitted are decoded before they are refused.
            warnings.simplefilter("ignore")
            return machine.run(members[programs[0]])
    except _NotAdmittedError as error:
        raise problem(path, programs[0], str(error)) from error
    except (ValueError, TypeError, IndexError, KeyError, RecursionError, OverflowError, MemoryError) as error:
        raise problem(
            path, programs[0], f"damaged: {type(error).__name__}: {shortened(str(error))}"
        ) from error


class _NotAdmittedError(Exception):
    """The pickle asks for more than data."""


class _Machine:
    """Carries out the opcodes that data needs."""

    def __init__(self, members: dict[str, bytes], folder: str) -> None:
        self._members, self._folder = members, folder
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._unpacked_bytes = 0

    def run(self, program: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name == "STOP":
                return self._stack.pop()
            if opcode.name in _PUSHES:
                self._stack.append(argument)
            elif opcode.name in _ACTIONS:
                _ACTIONS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise _NotAdmittedError(f"opcode {opcode.name} is not admitted: only data is read")
        raise ValueError("no end")

    def refer(self, name: str) -> None:
        if name not in _ADMITTED:
            raise _NotAdmittedError(
                f"refers to {shortened(name.replace(' ', '.'))}, which is not admitted: only tensors, "
                "containers, strings and numbers are read"
            )
        self._stack.append(_Name(name))

    def refer_to_stack(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self.refer(f"{module} {name}")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        taken = []
        while (value := self._stack.pop()) is not _MARK:
            taken.append(value)
        return taken[::-1]

    def make_tuple(self, size: int) -> None:
        if len(self._stack) < size:
            raise IndexError("the stack is too short")
        self._stack[len(self._stack) - size :] = [tuple(self._stack[len(self._stack) - size :])]

    def extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise TypeError("appended to what is no list")
        target.extend(values)

    def update(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise TypeError("set in what is no dict")
        target.update(zip(values[::2], values[1::2], strict=True))

    def remember(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._stack[-1]

    def recall(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def load_storage(self) -> None:
        kind, storage, key, _, numel = self._stack.pop()
        dtype = _STORAGES.get(storage.name) if isinstance(storage, _Name) else None
        if kind != "storage" or dtype is None or not isinstance(key, str) or type(numel) is not int:
            raise TypeError("not a storage")
        data = self._members[self._folder + key]
        plain = "<u2" if dtype == _BFLOAT16 else dtype
        if len(data) != numel * np.dtype(plain).itemsize:
            raise ValueError(f"storage {key} has {len(data)} bytes, not {numel} numbers")
        values = np.frombuffer(data, plain)
        if dtype == _BFLOAT16:  # the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        self._stack.append(values)

    def call(self) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if name == _Name(_ORDERED) and arguments == ():
            self._stack.append({})
        elif name == _Name(_REBUILD):
            self._stack.append(self._tensor(*arguments[:4]))
        else:
            raise _NotAdmittedError("a call of anything but tensors is not admitted")

    def _tensor(self, storage: Any, offset: Any, shape: Any, strides: Any) -> np.ndarray:
        numbers = (offset, *shape, *strides)
        if not isinstance(storage, np.ndarray) or storage.ndim != 1 or len(shape) != len(strides):
            raise TypeError("not a tensor")
        if not all(type(number) is int and 0 <= number < 2**40 for number in numbers):
            raise ValueError("offset, shape and strides must be whole numbers")
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides))
        count = math.prod(shape)
        if count and last >= len(storage):
            raise ValueError("a tensor reaches beyond its storage")
        self._unpacked_bytes += count * storage.itemsize
        if self._unpacked_bytes > LARGEST_BYTES:
            raise ValueError(f"tensors unpack to more than {LARGEST_BYTES} bytes")
        strides_bytes = [stride * storage.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides_bytes).copy()


_PUSHES = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "MARK": lambda machine, _: machine.push(_MARK),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.make_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_tuple(3),
    "APPEND": lambda machine, _: machine.extend([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "SETITEM": lambda machine, _: machine.update([machine._stack.pop(-2), machine._stack.pop()]),
    "SETITEMS": lambda machine, _: machine.update(machine.pop_to_mark()),
    "BINPUT": lambda machine, index: machine.remember(index),
    "LONG_BINPUT": lambda machine, index: machine.remember(index),
    "MEMOIZE": lambda machine, _: machine.remember(None),
    "BINGET": lambda machine, index: machine.recall(index),
    "LONG_BINGET": lambda machine, index: machine.recall(index),
    "GLOBAL": lambda machine, name: machine.refer(name),
    "STACK_GLOBAL": lambda machine, _: machine.refer_to_stack(),
    "BINPERSID": lambda machine, _: machine.load_storage(),
    "REDUCE": lambda machine, _: machine.call(),
}
