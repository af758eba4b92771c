"""Streams of an accelerator, thin over torch's device-agnostic API: no kind of device is named.

Work runs on the calling thread with the stream current, and what it launches is queued by the
device. What Python raises there is raised by ``submit``; what the device finds wrong later comes
out of events as ``StreamError``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch

from isotherm.errors import StreamError
from isotherm.streams.api import Event, Item
from isotherm.streams.handoff import Handoff
from isotherm.streams.host import CallerStream
from isotherm.streams.waits import count_wait


class AcceleratorBackend:
    """Streams of one device of the machine's accelerator.

    Raises:
        ValueError: torch sees no such accelerator here.
    """

    queues_work = True

    def __init__(self, device: torch.device) -> None:
        present = torch.accelerator.current_accelerator(check_available=True)
        if present is None or present.type != device.type:
            seen = "no accelerator" if present is None else f"{present.type!r}"
            raise ValueError(
                f"device={str(device)!r} is not here, torch sees {seen}: choose that or 'cpu', "
                "or install a torch that is built for the device"
            )
        index = device.index
        if index is None:
            index = torch.accelerator.current_device_index()
        self.device = torch.device(device.type, index)

    def main_stream(self) -> AcceleratorStream:
        """The stream that is current on the calling thread."""
        stream = torch.accelerator.current_stream(self.device)
        return AcceleratorStream(stream, "main", is_ours=False)

    def side_stream(self, name: str) -> AcceleratorStream:
        """A stream from torch's pool for the device. Pools are finite: after some tens of streams
        two may be one, which costs concurrency and nothing else."""
        return AcceleratorStream(torch.Stream(device=self.device), name, is_ours=True)

    def caller_stream(self) -> CallerStream:
        """The calling thread."""
        return CallerStream()

    def handoff(self, items: Iterable[Item] = ()) -> Handoff[Item]:
        """A plain queue."""
        return Handoff(items)

    def own(self, tensor: torch.Tensor) -> None:
        """Nothing: only detectors watch it."""

    def pinned_empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Page-locked host memory."""
        with torch.inference_mode(False):
            return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)


class AcceleratorEvent:
    """A point in a stream of the device."""

    __slots__ = ("_event",)

    def __init__(self, event: torch.Event) -> None:
        self._event = event

    def query(self) -> bool:
        """Whether the device got here. Never waits.

        Raises:
            StreamError: the device reports an error, of this or of earlier work.
        """
        try:
            return self._event.query()
        except RuntimeError as error:
            raise StreamError(f"the device reports: {error}") from error

    def synchronize(self) -> None:
        """Blocks the host until the device gets here; counted on the forward path. Raises as
        ``query`` does."""
        if self.query():
            return
        count_wait()
        try:
            self._event.synchronize()
        except RuntimeError as error:
            raise StreamError(f"the device reports: {error}") from error


class AcceleratorStream:
    """A stream of the device: the engine's current one, or one of ours."""

    __slots__ = ("_is_closed", "_is_ours", "_name", "_stream")

    def __init__(self, stream: torch.Stream, name: str, *, is_ours: bool) -> None:
        self._stream = stream
        self._name = name
        self._is_ours = is_ours
        self._is_closed = False

    def submit(
        self,
        work: Callable[[], None],
        *,
        reads: Sequence[torch.Tensor] = (),
        writes: Sequence[torch.Tensor] = (),
    ) -> None:
        """Calls ``work`` with this stream current; what it launches is queued here. Raises what it
        raises.

        Raises:
            RuntimeError: the stream is closed.
        """
        self._refuse_if_closed()
        stream = self._stream
        # A torch.Stream keeps in itself what it replaced, so entering one from two threads, or
        # twice on one, restores the wrong stream or is refused. A new object for it is safe.
        with torch.Stream(stream.stream_id, stream.device_index, stream.device_type):
            work()

    def record_event(self) -> AcceleratorEvent:
        """An event behind everything submitted so far."""
        event = torch.Event(self._stream.device, enable_timing=False)
        self._stream.record_event(event)
        return AcceleratorEvent(event)

    def wait_event(self, event: Event) -> None:
        """The device holds back what is submitted from now on until ``event``, which must be an
        accelerator's: a device cannot wait for the host.

        Raises:
            RuntimeError: the stream is closed.
            TypeError: an event of another backend.
        """
        self._refuse_if_closed()
        if not isinstance(event, AcceleratorEvent):
            raise TypeError(
                f"stream {self._name!r} of {self._stream.device} cannot wait for a "
                f"{type(event).__name__}: a device waits for events of its own backend only"
            )
        self._stream.wait_event(event._event)

    def query(self) -> bool:
        """Whether everything submitted so far is done. Never waits.

        Raises:
            StreamError: the device reports an error.
        """
        try:
            return self._stream.query()
        except RuntimeError as error:
            raise StreamError(f"stream {self._name!r}: the device reports: {error}") from error

    def synchronize(self) -> None:
        """Blocks the host until everything submitted so far is done; counted on the forward path.
        Raises as ``query`` does."""
        if self.query():
            return
        count_wait()
        try:
            self._stream.synchronize()
        except RuntimeError as error:
            raise StreamError(f"stream {self._name!r}: the device reports: {error}") from error

    def close(self) -> None:
        """Waits for what was submitted; nothing more is taken. Does nothing to the engine's stream.

        Raises:
            StreamError: the device reports an error. The stream is closed all the same.
        """
        if self._is_ours and not self._is_closed:
            self._is_closed = True
            self.synchronize()

    def _refuse_if_closed(self) -> None:
        if self._is_closed:
            raise RuntimeError(f"stream {self._name!r} is closed: submit before close(), or make another")
