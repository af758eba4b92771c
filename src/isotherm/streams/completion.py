"""Memory outlives its readers: what an operation reads is owned until its event is done."""

from __future__ import annotations

from isotherm.errors import StreamError
from isotherm.streams.api import Event


class Completion:
    """An operation under way, and everything that has to live until it is done.

    Whoever keeps the completion keeps the owned objects (tensors, buffers, other completions);
    dropping it before ``done()`` was true gives them up while they may still be read. ``done`` and
    ``wait`` drop them as soon as the event is done, or failed: a failed stream reads nothing more.
    """

    __slots__ = ("_event", "_owned")

    def __init__(self, event: Event, *owned: object) -> None:
        self._event = event
        self._owned = owned

    def done(self) -> bool:
        """Whether the operation is done. Never waits.

        Raises:
            StreamError: the operation, or work before it on its stream, raised. Every call says so.
        """
        try:
            is_done = self._event.query()
        except StreamError:
            self._owned = ()
            raise
        if is_done:
            self._owned = ()
        return is_done

    def wait(self) -> None:
        """Blocks the host until the operation is done; counted on the forward path. Raises as
        ``done`` does. An interrupted wait (Ctrl-C) keeps what is owned."""
        try:
            self._event.synchronize()
        except StreamError:
            self._owned = ()
            raise
        self._owned = ()
