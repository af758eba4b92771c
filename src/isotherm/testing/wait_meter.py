"""The instrument behind "main never waits": it fails if a call on the forward path waits.

    with no_waits():
        engine.step()

While the calling thread is inside ``forward_path()`` it watches

- functions in C (``sys.setprofile``): sleeping, locks, queues, files, sockets, processes, collectives;
- functions in Python that wait, ``count_wait()`` of `isotherm.streams` among them;
- ``with lock:``, which calls no function: such instructions are traced (``sys.settrace``), and the lock is
  looked at;
- operations of torch (a dispatch mode): values read from a tensor, sizes that depend on values, and copies
  between host and device that block.

What waits inside a library in C without any of these is seen by the second meter alone: a thread that
waits gives up its core, and the system counts that. Other threads that hold the interpreter's lock make it
give up its core too, so that meter tells something in a process of one thread only.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import isotherm
from isotherm.streams.waits import forward_path, on_forward_path
from isotherm.testing.blocking import blocking_builtin, blocking_function, blocking_operation, is_held
from isotherm.testing.call_sites import entered, enters_names

_OURS = str(Path(isotherm.__file__).parent)
_INSTRUMENTS = tuple(
    str(Path(_OURS, name)) for name in ("testing/wait_meter.py", "testing/blocking.py", "streams/waits.py")
)
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")})
_ENTER, _EXIT = (getattr(type(forward_path()), name).__code__ for name in ("__enter__", "__exit__"))


@dataclass(frozen=True)
class Wait:
    """The thread waited, or would have: ``what`` it called, and ``where``, as file and line of the
    innermost frame of Isotherm, or else of the caller's own code."""

    what: str
    where: str


class WaitMeter:
    """What one thread waited for on the forward path."""

    def __init__(self, strict: bool) -> None:
        self.waits: list[Wait] = []
        self.calls = 0
        """Outermost blocks of ``forward_path()`` so far: a check of no call shows nothing."""
        self.switches: int | None = None if _count_switches is None else 0
        """Times that the thread gave up its core inside of them; None where the system does not count."""
        self._strict = strict
        self._switches_before = 0
        self._within: tuple[FrameType, bool] | None = None  # a reported call: its frame, and whether in C

    def check(self) -> None:
        """Raises AssertionError, naming all waits, if there was one."""
        if self.waits:
            lines = "\n".join(f"  {wait.what} at {wait.where}" for wait in self.waits)
            raise AssertionError(f"{len(self.waits)} waits on the forward path:\n{lines}")

    def profile(self, frame: FrameType, event: str, arg: Any) -> None:
        """Told of every call that the thread makes and ends."""
        if event == "call":
            self._begin(frame)
        elif event == "c_call":
            if self._is_watching():
                self._report(blocking_builtin(arg, frame, self._strict), frame, in_c=True)
        else:
            self._end(frame, event)

    def trace(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        """Told of every function that the thread begins; follows those that enter locks."""
        if not enters_names(frame.f_code):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._trace_instruction

    def see_operation(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Told of every operation of torch, before it is made."""
        if self._is_watching():
            what = blocking_operation(operation, args, kwargs, self._strict)
            self._report(what, sys._getframe(1))

    def _is_watching(self) -> bool:
        return self._within is None and on_forward_path()

    def _begin(self, frame: FrameType) -> None:
        if frame.f_code is _EXIT and frame.f_locals["self"].depth == 1 and _count_switches is not None:
            assert self.switches is not None
            self.switches += _count_switches() - self._switches_before
        if self._is_watching() and self._report(blocking_function(frame), frame):
            self._within = frame, False

    def _end(self, frame: FrameType, event: str) -> None:
        if self._within == (frame, event != "return"):
            self._within = None
        if event == "return" and frame.f_code is _ENTER and frame.f_locals["self"].depth == 1:
            self.calls += 1
            if _count_switches is not None:
                self._switches_before = _count_switches()

    def _trace_instruction(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        if event == "opcode" and self._is_watching():
            lock = entered(frame)
            self._report(f"with {type(lock).__name__}" if is_held(lock) else None, frame)
        return self._trace_instruction

    def _report(self, what: str | None, frame: FrameType, in_c: bool = False) -> bool:
        if what is None:
            return False
        self.waits.append(Wait(what, _where(frame)))
        if in_c:
            self._within = frame, True
        return True


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hook
    def __init__(self, meter: WaitMeter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._meter = meter

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self._meter.see_operation(func, args, kwargs or {})
        return func(*args, **kwargs or {})


@contextmanager
def no_waits(*, strict: bool = True) -> Iterator[WaitMeter]:
    """Watches the calling thread until the block ends, and then checks.

    Calls made by functions that were entered inside the block are watched. ``strict``: what reads values
    of a tensor counts as a wait on the CPU too, since the same line would wait beside an accelerator. The
    thread's profiler and tracer are put aside for as long.

    Raises:
        AssertionError: a call on the forward path waited, at the end of the block; all are named.
    """
    meter = WaitMeter(strict)
    before = sys.getprofile(), sys.gettrace()
    with _Operations(meter):
        torch.zeros(1).add_(1)  # the first operation under a mode imports what modes need
        sys.settrace(meter.trace)
        sys.setprofile(meter.profile)
        try:
            yield meter
        finally:
            sys.setprofile(before[0])
            sys.settrace(before[1])
    meter.check()


def _where(frame: FrameType) -> str:
    frames = []
    walker: FrameType | None = frame
    while walker is not None:
        if not walker.f_code.co_filename.startswith(_INSTRUMENTS):
            frames.append(walker)
        walker = walker.f_back
    ours = (each for each in frames if each.f_code.co_filename.startswith(_OURS))
    callers = (each for each in frames if not each.f_code.co_filename.startswith(_LIBRARIES))
    found = next(ours, None) or next(callers, frame)
    return f"{found.f_code.co_filename}:{found.f_lineno}"


def _switch_counter() -> Callable[[], int] | None:
    try:
        import resource

        who = resource.RUSAGE_THREAD
    except (ImportError, AttributeError):  # no such module, or a system that counts by process only
        return None
    return lambda: resource.getrusage(who).ru_nvcsw


_count_switches = _switch_counter()
