"""The detector around real streams of the host: for one's own integration, in one's own tests.

    backend = watch(backend_for("cpu"))
    ...                                  # hand ``backend`` to what is to be proven
    backend.detector.check()

Work runs on real worker threads. What it declares, and the edges between streams and threads, are
recorded as they are asked for; a race is found whether or not this run lost it.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import torch

from isotherm.streams import Backend, Event, Handoff, Stream
from isotherm.streams.api import Item
from isotherm.testing.audit import Declared, TorchAudit, WorkAudit
from isotherm.testing.clocks import Kind, Knowledge, Lane
from isotherm.testing.findings import Operation
from isotherm.testing.operators import text_of
from isotherm.testing.races import Detector
from isotherm.testing.storages import Storages, extent_of
from isotherm.testing.timeline import label_of


def watch(backend: Backend, *, canaries: bool = False) -> WatchedBackend:
    """A backend that does what ``backend`` does, and detects races.

    Args:
        backend: streams of the host.
        canaries: also find writes that torch does not see (numpy, compiled kernels). Work then runs one
            at a time, and nothing but work may write to memory that work declares.

    Raises:
        ValueError: a backend of another device.
    """
    if backend.device.type != "cpu":
        raise ValueError(
            f"backend of {backend.device} given: memory is watched on the host; choose backend_for('cpu')"
        )
    return WatchedBackend(backend, canaries=canaries)


class WatchedBackend:
    """Streams of the host under watch. Memory is known by its storage; of the host's own accesses those are
    seen that go through ``caller_stream`` or ``main_stream``, or are torch's within ``watching_torch``.

    A thread begins behind what all others have done when it first comes here, and what a thread did that
    has ended happened before everything since. Work on a side stream does not use the backend itself.
    """

    def __init__(self, inner: Backend, *, canaries: bool) -> None:
        self._inner = inner
        self.device = inner.device
        self.queues_work = inner.queues_work
        self.detector = Detector()
        self._storages = Storages(self.detector)
        self._threads: list[tuple[weakref.ref[threading.Thread], Lane]] = []
        self._own = threading.local()
        self._one_at_a_time = threading.RLock() if canaries else None

    def main_stream(self) -> WatchedStream:
        return WatchedStream(self, self._inner.main_stream(), None)

    def side_stream(self, name: str) -> WatchedStream:
        return WatchedStream(self, self._inner.side_stream(name), Lane(name, Kind.STREAM))

    def caller_stream(self) -> WatchedStream:
        return WatchedStream(self, self._inner.caller_stream(), None)

    def handoff(self, items: Iterable[Item] = ()) -> Handoff[Item]:
        return WatchedHandoff(self, items)

    def own(self, tensor: torch.Tensor) -> None:
        with self.detector.lock:
            self.detector.own(self._storages.of(tensor), extent_of(tensor))

    def pinned_empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        return self._inner.pinned_empty(shape, dtype)

    def name(self, tensor: torch.Tensor, name: str) -> None:
        """What findings call the memory of ``tensor``."""
        with self.detector.lock:
            self._storages.of(tensor).name = name

    @contextmanager
    def watching_torch(self) -> Iterator[None]:
        """Within, each torch operation of the calling thread is an access of that thread: the engine's own
        code, which declares nothing."""

        def on_touch(tensor: torch.Tensor, is_write: bool, name: str) -> None:
            with self.detector.lock:
                operation = self.detector.begin(self.thread_lane(), name, verb="does")
                self._touch(operation, self._declared([tensor], writes=is_write))

        with TorchAudit(on_touch, spares_own=False):
            yield

    # -- for its streams, events and hand-overs ---------------------------------------------------------

    def thread_lane(self) -> Lane:
        """The calling thread's. Under the detector's lock."""
        lane: Lane | None = getattr(self._own, "lane", None)
        if lane is None:
            thread = threading.current_thread()
            lane = self._own.lane = Lane(thread.name, Kind.THREAD)
            for _, other in self._threads:
                lane.learn(other.snapshot())
            self._threads.append((weakref.ref(thread), lane))
        for thread_reference, other in tuple(self._threads):
            other_thread = thread_reference()
            if other_thread is None or not other_thread.is_alive():
                lane.learn(other.snapshot())
        return lane

    def enqueue(
        self,
        stream: Stream,
        lane: Lane | None,
        work: Callable[[], None],
        reads: Sequence[torch.Tensor],
        writes: Sequence[torch.Tensor],
    ) -> None:
        """Records what is declared, and submits the work, audited. Stamps are in the order of the queue."""
        with ExitStack() as held:
            held.enter_context(self.detector.lock)
            thread = self.thread_lane()
            operation_lane = thread if lane is None else lane
            operation_lane.learn(thread.snapshot())
            operation = self.detector.begin(operation_lane, label_of(work))
            declared = self._declared(reads, writes=False) + self._declared(writes, writes=True)
            self._touch(operation, declared)
            audit = WorkAudit(self.detector, self._storages, operation, declared)
            audited = _Audited(work, audit, self._one_at_a_time)
            if lane is None:
                held.close()  # it runs here and now, and others may go on
            stream.submit(audited)

    def _declared(self, tensors: Sequence[torch.Tensor], *, writes: bool) -> list[Declared]:
        return [
            Declared(self._storages.of(tensor), extent_of(tensor), writes, text_of(tensor))
            for tensor in tensors
        ]

    def _touch(self, operation: Operation, declared: Sequence[Declared]) -> None:
        for one in declared:
            self.detector.touch(operation, one.storage, one.extent, writes=one.writes, tensor=one.tensor)


class _Audited:
    """Work with its audit around it. Named as the work is, in what a failed stream says."""

    def __init__(
        self, work: Callable[[], None], audit: WorkAudit, one_at_a_time: AbstractContextManager[bool] | None
    ) -> None:
        self._work = work
        self._audit = audit
        self._one_at_a_time = one_at_a_time
        self.__qualname__ = label_of(work)

    def __call__(self) -> None:
        with ExitStack() as watching:
            if self._one_at_a_time is not None:
                watching.enter_context(self._one_at_a_time)
                watching.enter_context(self._audit.watching_bytes())
            watching.enter_context(self._audit.watching_torch())
            self._work()


class WatchedStream:
    """A stream of the host; without a ``lane`` the calling thread."""

    def __init__(self, backend: WatchedBackend, inner: Stream, lane: Lane | None) -> None:
        self._backend = backend
        self._inner = inner
        self._lane = lane
        self._is_closed = False

    def submit(
        self,
        work: Callable[[], None],
        *,
        reads: Sequence[torch.Tensor] = (),
        writes: Sequence[torch.Tensor] = (),
    ) -> None:
        if self._is_closed:
            self._inner.submit(work)  # refuses, and nothing was enqueued
        self._backend.enqueue(self._inner, self._lane, work, reads, writes)

    def record_event(self) -> WatchedEvent:
        with self._backend.detector.lock:
            thread = self._backend.thread_lane()
            lane = thread if self._lane is None else self._lane
            lane.learn(thread.snapshot())
            return WatchedEvent(self._backend, self._inner.record_event(), lane.snapshot())

    def wait_event(self, event: Event) -> None:
        """As the inner stream's; of a watched backend's events alone.

        Raises:
            TypeError: another event, whose edge nobody could know.
        """
        if not isinstance(event, WatchedEvent):
            raise TypeError(
                f"a watched stream cannot wait for this {type(event).__name__}: watch its backend too"
            )
        if self._lane is None:
            event.synchronize()
            return
        with self._backend.detector.lock:
            self._inner.wait_event(event.inner)
            self._lane.learn(self._backend.thread_lane().snapshot())
            self._lane.learn(event.known)

    def query(self) -> bool:
        event = self.record_event()  # what is behind it when it is asked
        is_done = self._inner.query()
        if is_done:
            event.learn()
        return is_done

    def synchronize(self) -> None:
        self.record_event().synchronize()

    def close(self) -> None:
        """Behind it, the calling thread has seen all work of the stream."""
        event = self.record_event()
        self._inner.close()
        self._is_closed = self._lane is not None
        event.learn()


class WatchedEvent:
    """A point in a watched stream. Who saw it done comes after what it is behind."""

    def __init__(self, backend: WatchedBackend, inner: Event, known: Knowledge) -> None:
        self._backend = backend
        self.inner = inner
        self.known = known

    def query(self) -> bool:
        is_done = self.inner.query()
        if is_done:
            self.learn()
        return is_done

    def synchronize(self) -> None:
        self.inner.synchronize()
        self.learn()

    def learn(self) -> None:
        with self._backend.detector.lock:
            self._backend.thread_lane().learn(self.known)


class WatchedHandoff(Handoff[Item]):
    """A queue that carries what its giver knows."""

    __slots__ = ("_backend", "_given")

    def __init__(self, backend: WatchedBackend, items: Iterable[Item]) -> None:
        super().__init__()
        self._backend = backend
        self._given: deque[tuple[Item, Knowledge]] = deque()
        for item in items:
            self.put(item)

    def put(self, item: Item) -> None:
        with self._backend.detector.lock:
            self._given.append((item, self._backend.thread_lane().snapshot()))

    def try_take(self) -> Item | None:
        with self._backend.detector.lock:
            if not self._given:
                return None
            item, known = self._given.popleft()
            self._backend.thread_lane().learn(known)
            return item
