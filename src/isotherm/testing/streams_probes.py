"""Small parts that the checks of the streams' contract are made of.

Where a check needs slow work, a thread is held at a gate; a device, which nothing can hold, is
given work that takes long.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch

from isotherm.errors import StreamError
from isotherm.streams import Backend, Event, Stream

GATE_SECONDS = 20.0
"""The longest that slow work holds a thread. A stream that waits where it must not is let go then,
and the check fails instead of hanging."""
GLANCE_SECONDS = 0.02
"""How long a check looks whether something happens that must not."""


class SlowWork:
    """Work that is not done until ``release``, or on a device not for many milliseconds."""

    def __init__(self, backend: Backend) -> None:
        self._gate = threading.Event()
        self._factor: torch.Tensor | None = None
        if backend.device.type != "cpu":
            self._factor = torch.ones(4096, 4096, device=backend.device)
            self._product = torch.empty_like(self._factor)
            backend.main_stream().synchronize()

    def __call__(self) -> None:
        if self._factor is None:
            self._gate.wait(GATE_SECONDS)
            return
        for _ in range(128):
            torch.mm(self._factor, self._factor, out=self._product)

    def release(self) -> None:
        self._gate.set()


@contextmanager
def slow_work(backend: Backend) -> Iterator[SlowWork]:
    """Opened inside of the streams it is for, so that they can be closed when a check fails."""
    slow = SlowWork(backend)
    try:
        yield slow
    finally:
        slow.release()


@contextmanager
def side_streams(backend: Backend, *names: str) -> Iterator[list[Stream]]:
    with ExitStack() as opened:
        streams = [backend.side_stream(name) for name in names]
        for stream in streams:
            opened.callback(stream.close)
        yield streams


def new_cell(backend: Backend) -> torch.Tensor:
    """A zero that every stream may use at once."""
    cell = torch.zeros(1, dtype=torch.int64, device=backend.device)
    backend.main_stream().synchronize()
    return cell


def submit_affine(stream: Stream, cell: torch.Tensor, factor: int, summand: int) -> None:
    def step() -> None:
        cell.mul_(factor).add_(summand)

    stream.submit(step, reads=(cell,), writes=(cell,))


def submit_copy(stream: Stream, source: torch.Tensor, target: torch.Tensor) -> None:
    def copy() -> None:
        target.copy_(source, non_blocking=True)

    stream.submit(copy, reads=(source,), writes=(target,))


def is_done_within(event: Event, seconds: float) -> bool:
    """Looks again and again, since an event can only be asked, or waited for without end."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while not event.query():
        if time.monotonic() > deadline:
            return False
        pause.wait(0.001)
    return True


def require(condition: bool, message: str) -> None:
    """An assertion that ``python -O`` keeps."""
    if not condition:
        raise AssertionError(message)


def expect(cell: torch.Tensor, value: int, what: str) -> None:
    found = cell.item()
    require(found == value, f"{what}: expected {value}, found {found}")


def expect_refused(call: Callable[[], None], what: str) -> None:
    """The call must raise ``RuntimeError``."""
    try:
        call()
    except RuntimeError:
        return
    raise AssertionError(what)


def failure_of(event: Event) -> StreamError:
    """What an event behind work that raised fails with."""
    try:
        event.synchronize()
    except StreamError as error:
        return error
    raise AssertionError("work raised, and neither submit nor the event behind it said so")
