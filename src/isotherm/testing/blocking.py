"""Which calls make a thread wait: functions in C, functions in Python, and operations of torch.

What a call would block on is looked at as the call is made: a lock that is free, an event that is set or a
thread that has ended is no wait.
"""

from __future__ import annotations

import builtins
import concurrent.futures
import io
import os
import queue
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import CodeType, FrameType
from typing import Any

import torch
import torch.distributed as dist

from isotherm.streams.waits import count_wait
from isotherm.testing.call_sites import argument

_Lock = type(threading.Lock())
_RLock = type(threading.RLock())


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILE_CALLS = _words(
    "read read1 readinto readinto1 readline readlines readall peek write writelines flush truncate"
)
_SOCKET_CALLS = _words(
    "accept connect connect_ex recv recv_into recvfrom recvfrom_into recvmsg recvmsg_into "
    "send sendall sendmsg sendto"
)
_OS_CALLS = _words(
    "open read write readv writev pread pwrite sendfile fsync fdatasync system "
    "wait wait3 wait4 waitid waitpid"
)
_SIGNAL_CALLS = _words("pause sigwait sigwaitinfo sigtimedwait")
_GROUP_QUERIES = _words(
    "rank size name boxed unbox bound_device_id group_desc group_name get_group_store set_timeout options "
    "backend_type supports_splitting"
)


def blocking_builtin(function: Any, frame: FrameType, strict: bool) -> str | None:
    """What ``frame`` waits in when it calls ``function``, which is written in C; None where it does not.
    ``strict``: reading a tensor on the host is a wait wherever the tensor lies."""
    known = _builtins().get(function)
    if known is not None:
        return known
    owner, name = getattr(function, "__self__", None), function.__name__
    if isinstance(owner, torch.Tensor):
        reads = name in ("tolist", "cpu") and (strict or owner.device.type != "cpu")
        return f"Tensor.{name}" if reads else None
    return f"{type(owner).__name__}.{name}" if _would_block(owner, name, frame) else None


def _would_block(owner: Any, name: str, frame: FrameType) -> bool:
    if name in ("acquire", "acquire_lock", "__enter__"):
        return is_held(owner) and (name == "__enter__" or _asks_to_block(frame, "blocking"))
    if isinstance(owner, queue.SimpleQueue):
        return name == "get" and owner.empty() and _asks_to_block(frame, "block")
    if isinstance(owner, io.IOBase):
        return name in _FILE_CALLS and not isinstance(owner, io.BytesIO | io.StringIO)
    if isinstance(owner, socket.SocketType):
        return name in _SOCKET_CALLS and owner.gettimeout() != 0
    if type(owner).__module__ == "select":
        return name in ("poll", "control")
    if isinstance(owner, torch.Event | torch.Stream):
        return name == "synchronize"
    return type(owner).__name__ == "_ThreadHandle" and name == "join" and not owner.is_done()


def is_held(lock: Any) -> bool:
    """Whether entering ``lock`` would block this thread; False for what is no lock."""
    if isinstance(lock, _Lock):
        return bool(lock.locked())
    if isinstance(lock, _RLock):
        if not lock.acquire(False):
            return True
        lock.release()
        return False
    return type(lock).__name__ == "SemLock" and bool(lock._is_zero())


def _asks_to_block(frame: FrameType, flag: str) -> bool:
    asked = argument(frame, 0, flag, True)
    return asked is not False and asked != 0 and argument(frame, 1, "timeout", -1) != 0


@cache
def _builtins() -> dict[Any, str]:
    """Functions in C that wait whenever they are called."""
    found: dict[Any, str] = {
        time.sleep: "time.sleep",
        select.select: "select.select",
        builtins.open: "open",
        builtins.print: "print",
        builtins.input: "input",
        io.open_code: "open of a module",
    }
    modules: list[tuple[Any, Iterable[str]]] = [
        (os, _OS_CALLS),
        (signal, _SIGNAL_CALLS),
        (torch._C, (name for name in dir(torch._C) if "ynchronize" in name and not name[0].isupper())),
    ]
    found |= {
        getattr(module, name): f"{module.__name__}.{name}"
        for module, names in modules
        for name in names
        if hasattr(module, name)
    }
    if dist.is_available():
        found |= _group_methods()
    return found


def _group_methods() -> dict[Any, str]:
    """Collectives, and whatever asks a store. They are bound by pybind, so a profiler does not see whose
    they are: each is known by itself."""
    import torch.distributed.distributed_c10d as c10d

    names_of: Mapping[type, Callable[[str], bool]] = {
        dist.ProcessGroup: lambda name: name not in _GROUP_QUERIES,
        c10d.Backend: lambda name: name not in _GROUP_QUERIES,
        dist.Work: lambda name: name in ("wait", "synchronize"),
        c10d.Store: lambda name: True,
    }
    classes = [*names_of, *c10d.Store.__subclasses__(), *c10d.Backend.__subclasses__()]
    found = {}
    for kind in classes:
        waits = next(rule for base, rule in names_of.items() if issubclass(kind, base))
        for name, member in vars(kind).items():
            function = getattr(member, "__func__", None)
            if function is not None and not name.startswith("_") and waits(name):
                found[function] = f"{kind.__name__}.{name}"
    return found


def blocking_function(frame: FrameType) -> str | None:
    """What waits if the function that ``frame`` has just begun, written in Python, waits."""
    known = _functions().get(frame.f_code)
    if known is None:
        return None
    name, waits = known
    return name if waits(frame.f_locals) else None


_Rule = Callable[[Mapping[str, Any]], bool]


@cache
def _functions() -> dict[CodeType, tuple[str, _Rule]]:
    rules: dict[Any, tuple[str, _Rule]] = {
        count_wait: ("count_wait", lambda given: True),
        torch.accelerator.synchronize: ("torch.accelerator.synchronize", lambda given: True),
        threading.Condition.wait: ("Condition.wait", lambda given: True),
        threading.Barrier.wait: ("Barrier.wait", lambda given: True),
        threading.Event.wait: ("Event.wait", lambda given: not given["self"].is_set()),
        threading.Thread.join: ("Thread.join", lambda given: given["self"].is_alive()),
        threading.Semaphore.acquire: (
            "Semaphore.acquire",
            lambda given: bool(given["blocking"]) and given["self"]._value == 0,
        ),
        queue.Queue.get: ("Queue.get", lambda given: bool(given["block"]) and given["self"].empty()),
        queue.Queue.put: ("Queue.put", lambda given: bool(given["block"]) and given["self"].full()),
        concurrent.futures.Future.result: ("Future.result", lambda given: not given["self"].done()),
        subprocess.Popen.__init__: ("subprocess", lambda given: True),
        subprocess.Popen.wait: ("Popen.wait", lambda given: given["self"].returncode is None),
    }
    return {function.__code__: rule for function, rule in rules.items()}


def blocking_operation(
    operation: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], strict: bool
) -> str | None:
    """What an operation of torch makes the host wait for: a value that lies on a device, a size that
    depends on one, or a copy between host and device that blocks. ``strict``: on the CPU too, since the
    same line would wait beside an accelerator."""
    if operation.namespace == "c10d":
        return str(operation)
    tensors = list(_tensors((*args, *kwargs.values())))
    on_device = any(tensor.device.type != "cpu" for tensor in tensors)
    if (strict or on_device) and _reads_values(operation, args):
        return f"{operation}: the host reads what is in a tensor"
    crossing = _crossing(operation, tensors, args, kwargs)
    return f"{operation}: {crossing}" if crossing else None


def _reads_values(operation: Any, args: tuple[Any, ...]) -> bool:
    packet = operation.overloadpacket
    if packet in (torch.ops.aten.index, torch.ops.aten.index_put_, torch.ops.aten.index_put):
        return any(index.dtype in (torch.bool, torch.uint8) for index in _tensors(args[1]))
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return not tags.isdisjoint(operation.tags)


def _crossing(
    operation: Any, tensors: list[torch.Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """Why a copy between host and device blocks, or None."""
    packet, aten = operation.overloadpacket, torch.ops.aten
    if packet is aten.lift_fresh and tensors[0].device.type != "cpu":
        return "values of Python are copied to a device"
    if packet is aten.copy_:
        source, target = tensors[1].device, tensors[0].device
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking")
    elif packet is aten._to_copy:
        source, target = tensors[0].device, kwargs.get("device") or tensors[0].device
        non_blocking = kwargs.get("non_blocking")
    else:
        return None
    if (source.type == "cpu") == (target.type == "cpu"):
        return None
    if not non_blocking:
        return f"a copy from {source.type} to {target.type} that blocks"
    host = next((tensor for tensor in tensors if tensor.device.type == "cpu"), None)
    if host is not None and not host.is_pinned():
        return f"a copy from {source.type} to {target.type} whose host memory is not pinned"
    return None


def _tensors(values: Iterable[Any]) -> Iterable[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
