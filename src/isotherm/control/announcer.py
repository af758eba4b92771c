"""Bytes that rank 0 announces, carried to every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.control.link import Link

_GOOD, _BAD = 1, 2


class Announcer:
    """Participant: carries bytes from rank 0 to every rank, once each, in the order announced.

    Their digest travels in the header. A rank that received the bytes says in the next round whether they
    are those: only when all ranks have said so does ``deliver`` take them, on every rank in that round.
    Otherwise ``refuse`` is told which ranks received others, and nobody takes them.
    """

    header_words = 3  # bytes waiting, their digest, whether what was received is right

    def __init__(
        self,
        digest: Callable[[bytes], int],
        deliver: Callable[[bytes], None],
        refuse: Callable[[tuple[int, ...]], None],
    ) -> None:
        self._digest = digest
        self._deliver = deliver
        self._refuse = refuse
        self._waiting: bytes | None = None
        self._carried: bytes | None = None  # what this round's header speaks of
        self._received: bytes | None = None
        self._verdict = 0
        self._is_off = False

    @property
    def is_busy(self) -> bool:
        """Whether something announced has still to be delivered or refused. On rank 0, between a header and
        what this acts on it."""
        return self._carried is not None or self._received is not None

    def announce(self, data: bytes) -> None:
        """Hands over what the next round is to carry. On rank 0 only, one at a time, on the thread that
        makes the rounds."""
        assert self._waiting is None, "the last announcement has not been carried yet"
        self._waiting = data

    def call_off(self) -> None:
        """Drops what waits, is carried in this round, or was received. On every rank, in the same round."""
        self._waiting = self._received = None
        self._verdict = 0
        self._is_off = True

    def rejoin(self, link: Link) -> None:
        """What was on its way is dropped."""
        self.call_off()
        self._carried = None

    def header(self) -> Sequence[int]:
        self._is_off = False
        self._carried, self._waiting = self._waiting, None
        verdict, self._verdict = self._verdict, 0
        if self._carried is None:
            return (0, 0, verdict)
        return (len(self._carried), self._digest(self._carried), verdict)

    def act(self, headers_GW: Int64Array, link: Link) -> bool:
        size, digest = (int(word) for word in headers_GW[0, :2])
        # The header calls for it, whatever was called off since.
        data = link.broadcast(self._carried, size, source=0) if size else None
        self._carried = None
        received, self._received = self._received, None
        if self._is_off:
            return False
        if received is not None:
            self._judge(received, headers_GW[:, 2])
        if data is not None:
            self._received = data
            self._verdict = _GOOD if self._digest(data) == digest else _BAD
        return data is not None

    def _judge(self, received: bytes, verdicts_G: Int64Array) -> None:
        others = tuple(np.flatnonzero(verdicts_G != _GOOD).tolist())
        if others:
            self._refuse(others)
        else:
            self._deliver(received)
