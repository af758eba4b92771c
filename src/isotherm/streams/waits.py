"""The meter behind "main never waits": host waits made on the forward path are counted.

An engine-facing call marks itself with ``forward_path()``; whatever blocks the host calls
``count_wait()`` first. Off the forward path nothing is counted: background threads may wait.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager


class _ForwardPath:
    """How deep one thread is inside forward-path calls. Slots and a bare signature, because this is
    entered for every layer."""

    __slots__ = ("depth",)

    def __init__(self) -> None:
        self.depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.depth -= 1


class _Current(threading.local):
    """The calling thread's own path: one look-up for each call, and no lock."""

    def __init__(self) -> None:
        self.path = _ForwardPath()


class _Meter:
    """The waits of this process so far. Counting is rare, so a lock costs nothing that matters."""

    __slots__ = ("_lock", "num_waits")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.num_waits = 0

    def increment(self) -> None:
        with self._lock:
            self.num_waits += 1


_current = _Current()
_meter = _Meter()


def forward_path() -> AbstractContextManager[None]:
    """Marks the block as the engine's forward path on the calling thread; may be nested. Enter it
    on the thread that asked for it."""
    return _current.path


def on_forward_path() -> bool:
    """Whether the calling thread is inside a block of ``forward_path()``."""
    return _current.path.depth > 0


def count_wait() -> None:
    """Reports that the calling thread is about to wait for something. Counts it on the forward path
    and does nothing elsewhere. Call it before blocking, so that a wait without end is seen too."""
    if _current.path.depth:
        _meter.increment()


def forward_waits() -> int:
    """Host waits made on the forward path by any thread of this process, since it started."""
    return _meter.num_waits
