"""The small common part of torch's Stream and Event that Isotherm uses.

A stream runs what is submitted to it in order. ``submit`` calls the work at once where a device
queues it by itself (accelerator: the work launches kernels and copies on this stream), and hands
it to a worker thread where it does not (host). Code that uses streams is written for both: work
touches only tensors named in ``reads`` and ``writes``, and whoever submits keeps them alive until
an event recorded behind the work is done. Work cannot count on autograd being on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from isotherm.streams.handoff import Handoff

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")


class Event(Protocol):
    """A point in a stream. Made by ``Stream.record_event`` only, so it is never unrecorded.

    Any thread may ask it and wait for it. Once done it stays done."""

    def query(self) -> bool:
        """Whether everything before the event is done. Never waits.

        Raises:
            StreamError: work before the event raised.
        """

    def synchronize(self) -> None:
        """Blocks the host until the event is done. Never called on the forward path; a call there
        that has to wait is counted (`isotherm.streams.waits`). Raises as ``query`` does."""


class Stream(Protocol):
    """An in-order queue of work.

    Work that raises either raises out of ``submit`` (where it runs at once) or fails the stream:
    nothing submitted later runs, and events recorded behind it raise ``StreamError``."""

    def submit(
        self,
        work: Callable[[], None],
        *,
        reads: Sequence[torch.Tensor] = (),
        writes: Sequence[torch.Tensor] = (),
    ) -> None:
        """Enqueues ``work``. Never waits for anything enqueued before. The tensors are what it
        reads and writes; they must live, and stay unchanged by others, until an event behind it is
        done."""

    def record_event(self) -> Event:
        """An event behind everything submitted so far. Allowed after ``close`` too."""

    def wait_event(self, event: Event) -> None:
        """Work submitted from now on runs after ``event``; if ``event`` fails, so does this stream.
        The host does not wait, except on a main stream that is the caller's thread itself, where it
        must (and is counted). Refused after ``close`` as ``submit`` is."""

    def query(self) -> bool:
        """Whether everything submitted so far is done. Never waits; raises as ``Event.query``."""

    def synchronize(self) -> None:
        """Blocks the host until everything submitted so far is done; counted and raises as
        ``Event.synchronize`` does."""

    def close(self) -> None:
        """Finishes what was submitted and frees the stream. Twice is allowed; ``submit`` after it
        raises ``RuntimeError``. A main stream is the engine's: closing it does nothing."""


class Backend(Protocol):
    """How one kind of device makes streams and the memory that crosses them."""

    device: torch.device

    queues_work: bool
    """Whether the device queues small work by itself. False: handing work to a side stream costs the
    caller more than doing it."""

    def main_stream(self) -> Stream:
        """The engine's current stream on the calling thread."""

    def side_stream(self, name: str) -> Stream:
        """A new stream of ours. ``name`` shows in thread names and errors."""

    def caller_stream(self) -> Stream:
        """The calling thread as a stream: work on host memory, done when ``submit`` returns. For what a
        thread of ours reads and writes itself, so that it is declared as everything else is."""

    def handoff(self, items: Iterable[Item] = ()) -> Handoff[Item]:
        """A queue from one thread to another that begins with ``items``."""

    def own(self, tensor: torch.Tensor) -> None:
        """From here on ``tensor`` is ours: the engine handed it over, and nobody writes to it any more. No
        more than a name for that promise, which detectors of races watch."""

    def pinned_empty(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Host memory that copies to and from the device need not wait for; plain memory where
        there is no device to pin for. Never an inference tensor, whichever mode the caller is in,
        so that every thread may write to it."""
