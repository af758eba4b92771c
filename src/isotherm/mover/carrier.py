"""Weights on their way beside the rounds: chunk after chunk, each counted when it ended."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from isotherm.control import Link, Span, no_span
from isotherm.mover.schedule import Fill
from isotherm.streams import Stream

logger = logging.getLogger("isotherm")


class Transport(Protocol):
    """Carries the weights of fills: this rank's part of them, on the carrier's thread, with the same fills on
    every rank. `HostTransport` shows how; `ExpertWeights` knows their sources and targets."""

    @property
    def received_bytes(self) -> int:
        """Bytes of weights that arrived on this rank."""

    def carry(self, fills: Sequence[Fill], link: Link) -> None: ...

    def close(self) -> None: ...


class Carrier:
    """Carries chunks of fills on a stream of the host, in the order started, which is the same on every rank.

    So a chunk that is late holds up those behind it, and nothing that it still writes can come after what a
    later chunk writes into the same slot. Rounds go on meanwhile: no deadline is needed on the link.

    Args:
        stream: runs the chunks; the caller's own makes each one be carried when it is started.
        on_end: called when a chunk ended, on the stream.
        on_arrival: called with a chunk that has arrived, on the stream, before any rank hears of it. What it
            raises is a failure of the chunk.
        span: opens spans of a timeline.
    """

    def __init__(
        self,
        transport: Transport,
        stream: Stream,
        on_end: Callable[[], None],
        on_arrival: Callable[[Sequence[Fill]], None] = lambda fills: None,
        span: Span = no_span,
    ) -> None:
        self._transport = transport
        self._stream = stream
        self._on_end = on_end
        self._on_arrival = on_arrival
        self._span = span
        self._last_ended = threading.Event()
        self._last_ended.set()
        self.started = 0  # written by the heartbeat's thread alone
        # Written by the stream alone; what failed is counted before it is counted as ended.
        self.ended = 0
        self.failed = 0

    @property
    def received_bytes(self) -> int:
        """Bytes that arrived in slots of this rank."""
        return self._transport.received_bytes

    def start(self, fills: Sequence[Fill], link: Link) -> None:
        """Starts a chunk. With the same fills on every rank, in the same round."""
        self.started += 1
        self._last_ended = ended = threading.Event()
        self._stream.submit(lambda: self._carry(fills, link, ended))

    def close(self, timeout_seconds: float) -> None:
        """Waits for what is under way, at most ``timeout_seconds``; a transport that does not return is left
        behind, with its thread, a daemon."""
        if not self._last_ended.wait(timeout_seconds):
            logger.warning(
                "isotherm: weights are still on their way after closing; their thread is left behind"
            )
            return
        self._stream.close()
        self._transport.close()

    def _carry(self, fills: Sequence[Fill], link: Link, ended: threading.Event) -> None:
        try:
            with self._span(f"carry {len(fills)} experts", "carrier"):
                self._transport.carry(fills, link)
            self._on_arrival(fills)
        except BaseException:  # SystemExit too: a chunk that never ends lets none move after it
            logger.exception("isotherm: a transfer of %d experts failed on rank %d", len(fills), link.rank)
            self.failed += 1
        self.ended += 1
        ended.set()
        self._on_end()
