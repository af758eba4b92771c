"""Bytes that rank 0 announces, carried to every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from isotherm.arrays import Int64Array
from isotherm.control.link import Link
from isotherm.errors import ProtocolError


class Announcer:
    """Participant: carries bytes from rank 0 to every rank, once each, in the order announced.

    ``deliver`` is called on every rank, in the same round, with the bytes. Their digest travels in the
    header; a rank that received others raises ProtocolError. That, and whatever ``deliver`` raises, comes
    after the round's call, so it is a failure that every rank hears of, and nobody is left waiting.
    """

    header_words = 2  # bytes waiting, digest

    def __init__(self, digest: Callable[[bytes], int], deliver: Callable[[bytes], None]) -> None:
        self._digest = digest
        self._deliver = deliver
        self._waiting: bytes | None = None

    def announce(self, data: bytes) -> None:
        """Hands over what the next round is to carry. On rank 0 only, one at a time."""
        assert self._waiting is None, "the last announcement has not been carried yet"
        self._waiting = data

    def header(self) -> Sequence[int]:
        waiting = self._waiting
        return (0, 0) if waiting is None else (len(waiting), self._digest(waiting))

    def act(self, headers_GW: Int64Array, link: Link) -> bool:
        size, digest = (int(word) for word in headers_GW[0])
        if not size:
            return False
        data = link.broadcast(self._waiting if link.rank == 0 else None, size, source=0)
        self._waiting = None
        if self._digest(data) != digest:
            raise ProtocolError(f"rank {link.rank} received a plan whose digest is not {digest:#x}")
        self._deliver(data)
        return True
