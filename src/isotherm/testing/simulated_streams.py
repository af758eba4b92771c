"""Streams, events and hand-overs of the simulated device: the interface of `isotherm.streams`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

import torch

from isotherm.streams import Event as AnyEvent
from isotherm.streams import Handoff
from isotherm.streams.api import Item
from isotherm.testing.clocks import Knowledge
from isotherm.testing.device import Device
from isotherm.testing.queues import Event, Queue
from isotherm.testing.tensors import DEVICE, new_tensor, touches_of
from isotherm.testing.timeline import label_of


class SimulatedBackend:
    """Streams of the simulated device."""

    queues_work = True

    def __init__(self, device: Device) -> None:
        self._device = device
        self.device = DEVICE

    def main_stream(self) -> SimulatedStream:
        return SimulatedStream(self._device, self._device.stream, is_ours=False)

    def side_stream(self, name: str) -> SimulatedStream:
        return SimulatedStream(self._device, self._device.add_queue(name), is_ours=True)

    def caller_stream(self) -> SimulatedCaller:
        return SimulatedCaller(self._device)

    def handoff(self, items: Iterable[Item] = ()) -> Handoff[Item]:
        return SimulatedHandoff(self._device, items)

    def own(self, tensor: torch.Tensor) -> None:
        for touch in touches_of([tensor], writes=False):
            self._device.detector.own(touch.allocation, touch.extent)

    def pinned_empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Host memory that the simulation knows."""
        with torch.inference_mode(False):
            return new_tensor(self._device, shape, dtype, is_host=True)


class SimulatedStream:
    """A stream of the simulated device."""

    def __init__(self, device: Device, queue: Queue, *, is_ours: bool) -> None:
        self._device = device
        self._queue = queue
        self._is_ours = is_ours
        self._is_closed = False

    def submit(
        self,
        work: Callable[[], None],
        *,
        reads: Sequence[torch.Tensor] = (),
        writes: Sequence[torch.Tensor] = (),
    ) -> None:
        """Calls ``work``, which launches on this stream, and audits what it touches. Raises what it raises.

        Raises:
            RuntimeError: the stream is closed.
        """
        self._refuse_if_closed()
        declared = touches_of(reads, writes=False) + touches_of(writes, writes=True)
        self._device.work(self._queue, label_of(work), work, declared)

    def record_event(self) -> Event:
        return self._device.record(self._queue)

    def wait_event(self, event: AnyEvent) -> None:
        """As an accelerator's: ``RuntimeError`` after close, ``TypeError`` for another backend's event."""
        self._refuse_if_closed()
        if not isinstance(event, Event) or event.host is not self._device:
            raise TypeError(
                f"stream {self._queue.name!r} cannot wait for a {type(event).__name__} of elsewhere"
            )
        self._device.hold(self._queue, event)

    def query(self) -> bool:
        return self.record_event().query()

    def synchronize(self) -> None:
        self.record_event().synchronize()

    def close(self) -> None:
        if self._is_ours and not self._is_closed:
            self._is_closed = True
            self.synchronize()

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise RuntimeError(
                f"stream {self._queue.name!r} is closed: submit before close(), or make another"
            )


class SimulatedCaller:
    """The thread of the program that is running, as a stream."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def submit(
        self,
        work: Callable[[], None],
        *,
        reads: Sequence[torch.Tensor] = (),
        writes: Sequence[torch.Tensor] = (),
    ) -> None:
        """Runs ``work`` at once and audits what it touches."""
        declared = touches_of(reads, writes=False) + touches_of(writes, writes=True)
        self._device.work(None, label_of(work), work, declared)

    def record_event(self) -> DoneEvent:
        return DoneEvent(self._device, self._device.host.lane.snapshot())

    def wait_event(self, event: AnyEvent) -> None:
        event.synchronize()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def close(self) -> None:
        pass


class DoneEvent:
    """A point in a thread of the program, which was there when it was made."""

    def __init__(self, device: Device, known: Knowledge) -> None:
        self._device = device
        self._known = known

    def query(self) -> bool:
        self._device.learn(self._known)
        return True

    def synchronize(self) -> None:
        self.query()


class SimulatedHandoff(Handoff[Item]):
    """A queue that carries what its giver knows."""

    __slots__ = ("_device", "_given")

    def __init__(self, device: Device, items: Iterable[Item]) -> None:
        super().__init__()
        self._device = device
        self._given: deque[tuple[Item, Knowledge]] = deque()
        for item in items:
            self.put(item)

    def put(self, item: Item) -> None:
        self._device.reap()
        self._given.append((item, self._device.host.lane.snapshot()))

    def try_take(self) -> Item | None:
        if not self._given:
            return None
        item, known = self._given.popleft()
        self._device.learn(known)
        return item
