"""Streams on the host: the caller's own thread as main, a worker thread for each side stream."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence

import torch

from isotherm.streams.api import Event, Item
from isotherm.streams.handoff import Handoff
from isotherm.streams.worker import REACHED, HostEvent, Worker


class HostBackend:
    """Streams for the CPU. Main is whatever thread calls; memory is not pinned."""

    queues_work = False

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def main_stream(self) -> CallerStream:
        """The calling thread as a stream."""
        return CallerStream()

    def side_stream(self, name: str) -> HostStream:
        """A new worker thread, named ``isotherm-<name>``."""
        return HostStream(name)

    def caller_stream(self) -> CallerStream:
        """The calling thread, which is main too."""
        return CallerStream()

    def handoff(self, items: Iterable[Item] = ()) -> Handoff[Item]:
        """A plain queue."""
        return Handoff(items)

    def own(self, tensor: torch.Tensor) -> None:
        """Nothing: only detectors watch it."""

    def pinned_empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Plain memory: there is no device to pin for."""
        with torch.inference_mode(False):
            return torch.empty(tuple(shape), dtype=dtype)


class CallerStream:
    """The calling thread as a stream: what is submitted is done when ``submit`` returns, and what
    it raises is raised there. Holds nothing, so all of them are the same."""

    __slots__ = ()

    def submit(
        self,
        work: Callable[[], None],
        *,
        reads: Sequence[torch.Tensor] = (),
        writes: Sequence[torch.Tensor] = (),
    ) -> None:
        """Runs ``work`` at once. Raises what it raises."""
        work()

    def record_event(self) -> HostEvent:
        """An event that is already done."""
        return REACHED

    def wait_event(self, event: Event) -> None:
        """Blocks the caller until ``event`` is done; counted on the forward path.

        Raises:
            StreamError: ``event`` failed.
        """
        event.synchronize()

    def query(self) -> bool:
        """True: nothing submitted here is ever left to do."""
        return True

    def synchronize(self) -> None:
        """Returns at once, for the same reason."""

    def close(self) -> None:
        """Does nothing: the thread is the engine's."""


class HostStream:
    """A worker thread that runs what is submitted, in order, without autograd.

    Work that raises fails the stream: later work is dropped unrun, and events behind it raise
    ``StreamError``, chained to the cause. Work and what it holds are let go before the next item is
    looked at, so nothing of it lives when an event behind it is done. Any thread may submit. A
    stream that is dropped without ``close`` finishes what it has and ends.
    """

    __slots__ = ("__weakref__", "_worker")

    def __init__(self, name: str) -> None:
        self._worker = Worker(name)
        weakref.finalize(self, self._worker.stop).atexit = False

    def submit(
        self,
        work: Callable[[], None],
        *,
        reads: Sequence[torch.Tensor] = (),
        writes: Sequence[torch.Tensor] = (),
    ) -> None:
        """Enqueues ``work``; never waits for work.

        Raises:
            RuntimeError: the stream is closed.
        """
        self._worker.put(work)

    def record_event(self) -> HostEvent:
        """An event behind everything submitted so far."""
        return self._worker.put_event()

    def wait_event(self, event: Event) -> None:
        """The worker waits for ``event``, of any stream whose events the host can wait for, before
        it runs what is submitted from now on. If ``event`` fails, this stream fails too.

        Raises:
            RuntimeError: the stream is closed.
        """
        self._worker.put(event.synchronize)

    def query(self) -> bool:
        """Whether everything submitted so far is done. Never waits.

        Raises:
            StreamError: work of this stream raised.
        """
        return self._worker.query()

    def synchronize(self) -> None:
        """Blocks until everything submitted so far is done; counted on the forward path. Raises as
        ``query`` does."""
        if not self._worker.query():
            self._worker.put_event().synchronize()

    def close(self) -> None:
        """Finishes what was submitted and joins the worker (unless called by it). What failed is
        told by events, not by ``close``."""
        self._worker.stop()
        self._worker.join()
