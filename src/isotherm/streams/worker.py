"""The thread behind a host stream, and its events.

An event is a lock that the worker opens when it gets there. A worker knows nothing of the stream it
serves, so a stream that nobody holds any more is collected, and that ends its worker. At the end of
the interpreter the workers drop what is left and are joined for a moment: a thread that dies inside
a native call can bring the process down with it. Workers do not survive ``fork``.
"""

from __future__ import annotations

import atexit
import enum
import functools
import queue
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

import torch

from isotherm.errors import StreamError
from isotherm.streams.waits import count_wait

EXIT_SECONDS = 2.0
"""How long the end of the interpreter waits for work that is running, over all streams."""


@dataclass(frozen=True)
class _Failure:
    """Why a stream runs nothing more."""

    message: str
    cause: BaseException | None

    def error(self) -> StreamError:
        """A new error for each who asks: a raised one grows a traceback of its own."""
        error = StreamError(self.message)
        error.__cause__ = self.cause
        return error


class HostEvent:
    """A point in a host stream. Done when the stream got there; failed if its work had raised."""

    __slots__ = ("_failure", "_gate", "_is_reached")

    def __init__(self) -> None:
        self._failure: _Failure | None = None
        self._is_reached = False
        self._gate = threading.Lock()
        self._gate.acquire()

    def query(self) -> bool:
        """Whether the stream got here. Never waits.

        Raises:
            StreamError: work before the event raised; chained to what it raised.
        """
        if self._is_reached and self._failure is not None:
            raise self._failure.error()
        return self._is_reached

    def synchronize(self) -> None:
        """Blocks until the stream gets here; counted on the forward path. Raises as ``query``."""
        if not self._is_reached:
            count_wait()
            with self._gate:  # open from then on: those who wait pass one after the other
                pass
        self.query()

    def _reach(self, failure: _Failure | None) -> None:
        self._failure = failure
        self._is_reached = True
        self._gate.release()


def _reached_event() -> HostEvent:
    event = HostEvent()
    event._reach(None)
    return event


REACHED = _reached_event()
"""For a stream on which nothing is ever left to do."""


class _State(enum.Enum):
    OPEN = "takes work"
    CLOSED = "finishes what it has"
    ABANDONED = "drops what it has"


class Worker:
    """The thread of a stream, and what the two share.

    ``HostStream`` documents what its methods promise; they are one to one."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()  # nothing may be queued behind the end
        self._state = _State.OPEN
        self._queue: queue.SimpleQueue[HostEvent | Callable[[], None] | None] = queue.SimpleQueue()
        self._num_queued = 0  # work and waits; events are no work
        self._num_done = 0  # written by the thread alone
        self._failure: _Failure | None = None  # written by the thread alone
        self._ended = HostEvent()
        self._thread = threading.Thread(target=self._serve, name=f"isotherm-{name}", daemon=True)
        self._thread.start()
        _workers.add(self)

    def put(self, work: Callable[[], None]) -> None:
        with self._lock:
            if self._state is not _State.OPEN:
                raise RuntimeError(f"stream {self._name!r} is closed: submit before close(), or make another")
            self._num_queued += 1
            self._queue.put(work)

    def put_event(self) -> HostEvent:
        with self._lock:
            if self._state is not _State.OPEN:
                return self._ended
            event = HostEvent()
            self._queue.put(event)
            return event

    def query(self) -> bool:
        is_done = self._num_done == self._num_queued  # first: a failure is set before it is counted
        if self._failure is not None:
            raise self._failure.error()
        return is_done

    def stop(self) -> None:
        with self._lock:
            if self._state is _State.OPEN:
                self._state = _State.CLOSED
                self._queue.put(None)

    def abandon(self) -> None:
        """As ``stop``, and what is left is dropped. Takes no lock: at the end of a forked copy of
        the process nobody may be left to open it."""
        self._state = _State.ABANDONED
        self._queue.put(None)

    def join(self, timeout_seconds: float | None = None) -> None:
        """Waits until the thread ended; returns at once on that thread itself."""
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            count_wait()
            self._thread.join(timeout_seconds)

    def _serve(self) -> None:
        with torch.inference_mode():
            while (item := self._queue.get()) is not None:
                self._handle(item)
                del item  # or it would live until the next one comes
        self._ended._reach(self._failure)
        _workers.discard(self)

    def _handle(self, item: HostEvent | Callable[[], None]) -> None:
        if isinstance(item, HostEvent):
            item._reach(self._failure)
            return
        if self._failure is None and self._state is _State.ABANDONED:
            self._failure = _Failure(f"stream {self._name!r} ended with the interpreter", None)
        if self._failure is None:
            self._failure = _failure_of(item, self._name)
        self._num_done += 1


def _failure_of(work: Callable[[], None], stream: str) -> _Failure | None:
    """Runs the work. What it raises is kept, without the memory that its frames still hold."""
    try:
        work()
    except BaseException as cause:  # SystemExit too: events behind it must come
        _drop_frames(cause)
        message = f"stream {stream!r} runs nothing more: {_name_of(work)} raised {cause!r}"
        return _Failure(message, cause)
    return None


def _drop_frames(error: BaseException | None) -> None:
    """Turns the traceback into a note, here and on the errors behind this one. To clear the frames
    would not do: each leads to its callers, and to the function with all that it closes over."""
    if error is None or error.__traceback__ is None:
        return
    lines = traceback.format_tb(error.__traceback__)
    error.add_note("".join(["It was raised here (most recent call last):\n", *lines]).rstrip())
    error.__traceback__ = None
    _drop_frames(error.__cause__)
    _drop_frames(error.__context__)


def _name_of(work: Callable[[], None]) -> str:
    if isinstance(work, functools.partial):
        return _name_of(work.func)
    return getattr(work, "__qualname__", type(work).__qualname__)


_workers: set[Worker] = set()


def _end_workers() -> None:
    """Tells all first: a worker may be waiting for an event of another."""
    workers = tuple(_workers)
    for worker in workers:
        worker.abandon()
    deadline = time.monotonic() + EXIT_SECONDS
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))


atexit.register(_end_workers)
