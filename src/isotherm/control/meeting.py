"""Where the engine's threads of all ranks meet, away from the forward path."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.control.link import Link
from isotherm.errors import LinkError


@dataclass(eq=False)
class _Offer:
    """What a rank brings to a meeting, and what it takes home."""

    kind: int
    words_W: Int64Array
    gathered_GW: Int64Array | None = None
    is_over: threading.Event = field(default_factory=threading.Event)


class Meeting:
    """Participant: gathers words that every rank brings, when all have come for the same.

    Args:
        is_ready: whether this rank may meet for a kind yet; asked in each round, on the heartbeat's thread.
        on_met: called with the kind, in the same round on every rank, before anyone goes home.
    """

    header_words = 1  # the kind that this rank has come for; 0: none

    def __init__(self, *, is_ready: Callable[[int], bool], on_met: Callable[[int], None]) -> None:
        self._is_ready = is_ready
        self._on_met = on_met
        self._offer: _Offer | None = None
        self._told: _Offer | None = None  # the heartbeat's own

    def meet(
        self, kind: int, words_W: Int64Array, drive: Callable[[], object], timeout_seconds: float
    ) -> Int64Array:
        """The words of every rank, [ranks, words]; as many on each. Waits until all have come.

        Args:
            kind: what for, above 0.
            drive: brings the next round nearer: called again and again while waiting.

        Raises:
            LinkError: not every rank came within ``timeout_seconds``.
        """
        offer = _Offer(kind, words_W)
        self._offer = offer
        deadline = time.monotonic() + timeout_seconds
        while not offer.is_over.is_set():
            drive()
            if not offer.is_over.wait(0.01) and time.monotonic() > deadline:
                self._offer = None
                raise LinkError(
                    f"not every rank made the same call within {timeout_seconds:g} s: make it on every rank"
                )
        assert offer.gathered_GW is not None, "it is over"
        return offer.gathered_GW

    def rejoin(self, link: Link) -> None:
        """Who still waits goes on waiting. Where others have met already it does so in vain."""
        self._told = None

    def header(self) -> Sequence[int]:
        offer = self._offer
        self._told = offer if offer is not None and self._is_ready(offer.kind) else None
        return (0 if self._told is None else self._told.kind,)

    def act(self, headers_GW: Int64Array, link: Link) -> bool:
        kinds_G = headers_GW[:, 0]
        told = self._told
        if told is None or (kinds_G != told.kind).any():
            return False
        told.gathered_GW = link.all_gather(np.ascontiguousarray(told.words_W))
        self._offer = None
        self._on_met(told.kind)
        told.is_over.set()
        return True
