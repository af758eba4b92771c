"""The heartbeat: all that ranks tell each other, in rounds that are the same on every rank.

One background thread per rank makes rounds on a CPU group of its own. A round is an all-gather of
small headers of fixed size, then exactly those collectives that the gathered headers call for. Every
rank reads the same headers, so every rank makes the same calls, whatever its state: states change the
contents of a round, never its calls. Participants (heat, plans, moves) own words of the header and act
on what was gathered; they know nothing of each other.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
import torch.distributed as dist

from isotherm.arrays import Int32Array, Int64Array
from isotherm.errors import PeerMismatchError, ProtocolError

logger = logging.getLogger("isotherm")

Span: TypeAlias = Callable[[str, str], AbstractContextManager[None]]
"""Opens a span of a timeline: ``with span(name, track):``. Must be cheap and thread-safe."""


def no_span(name: str, track: str) -> AbstractContextManager[None]:
    """The span of a run that nobody watches."""
    return nullcontext()


@dataclass(frozen=True)
class Transfer:
    """Bytes between this rank and ``peer``: a contiguous uint8 CPU tensor, read when sent and written
    when received. ``tag`` tells transfers of one exchange between the same two ranks apart."""

    buffer: torch.Tensor
    peer: int
    tag: int


class Link(Protocol):
    """What a round may do: collectives over CPU memory, called in the same order on every rank.

    Each call blocks the calling thread, which is never the engine's.
    """

    rank: int
    size: int

    def all_gather(self, words_W: Int64Array) -> Int64Array:
        """The words of every rank, int64 [ranks, words]."""

    def all_reduce(self, array: Int32Array | Int64Array) -> None:
        """Sums ``array`` over the ranks, in place."""

    def broadcast(self, data: bytes | None, size: int, source: int) -> bytes:
        """The ``size`` bytes that rank ``source`` passes as ``data``; others pass None."""

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        """Makes this rank's transfers; returns when all have arrived."""


class GroupLink:
    """A link over a torch.distributed process group whose tensors live on the CPU (gloo).

    The group must be the balancer's own: nobody else may use it, from any thread.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def all_gather(self, words_W: Int64Array) -> Int64Array:
        rows = torch.empty((self.size, len(words_W)), dtype=torch.int64)
        dist.all_gather(list(rows), torch.from_numpy(words_W), group=self._group)
        gathered_GW: Int64Array = rows.numpy()
        return gathered_GW

    def all_reduce(self, array: Int32Array | Int64Array) -> None:
        dist.all_reduce(torch.from_numpy(array), group=self._group)

    def broadcast(self, data: bytes | None, size: int, source: int) -> bytes:
        buffer = np.empty(size, np.uint8)
        if data is not None:
            buffer[:] = np.frombuffer(data, np.uint8)
        dist.broadcast(torch.from_numpy(buffer), group=self._group, group_src=source)
        return buffer.tobytes()

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        works = [dist.irecv(t.buffer, group=self._group, group_src=t.peer, tag=t.tag) for t in receives]
        works += [dist.isend(t.buffer, group=self._group, group_dst=t.peer, tag=t.tag) for t in sends]
        for work in works:
            assert work is not None, "this rank belongs to the group"
            work.wait()


class Participant(Protocol):
    """Owns ``header_words`` int64 words of each header, and acts on the gathered ones."""

    header_words: int

    def header(self) -> Sequence[int]:
        """This rank's words of the next round. Reads local state only; never waits."""

    def act(self, headers_GW: Int64Array, link: Link) -> None:
        """Makes the calls on ``link`` that ``headers_GW`` (this participant's words of all ranks) call
        for. Which calls must depend on ``headers_GW`` and on what earlier rounds agreed, nothing
        else."""


_BASE_WORDS = 2  # round number, closing


class Heartbeat:
    """Makes rounds over ``link`` for ``participants``, in the order given.

    ``beat()`` makes one round on the calling thread. ``start()`` makes them on a thread of its own,
    ``interval_seconds`` apart or sooner after ``poke()``, until every rank has asked to close, or one
    raises: then the thread logs it once, calls ``on_failure`` and ends; the engine goes on.
    """

    def __init__(
        self,
        link: Link,
        participants: Sequence[Participant],
        *,
        interval_seconds: float,
        span: Span = no_span,
        on_failure: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self._link = link
        self._participants = tuple(participants)
        self._interval_seconds = interval_seconds
        self._span = span
        self._on_failure = on_failure
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None
        self.rounds = 0

    def beat(self) -> bool:
        """One round. False when every rank has asked to close, and no further round may follow.

        Raises:
            ProtocolError: a rank is in another round.
        """
        words = [self.rounds, int(self._closing)]
        for participant in self._participants:
            words += participant.header()
        with self._span("headers", "heartbeat"):
            headers_GW = self._link.all_gather(np.array(words, np.int64))
        self._check_rounds(headers_GW[:, 0])
        first = _BASE_WORDS
        for participant in self._participants:
            behind = first + participant.header_words
            participant.act(headers_GW[:, first:behind], self._link)
            first = behind
        self.rounds += 1
        return not bool(headers_GW[:, 1].all())

    def start(self) -> None:
        """Starts the thread. Call once, on every rank."""
        self._thread = threading.Thread(target=self._run, name="isotherm-heartbeat", daemon=True)
        self._thread.start()

    def poke(self) -> None:
        """Makes the next round come at once. Never waits."""
        self._wake.set()

    def close(self, timeout_seconds: float) -> bool:
        """Asks to close and waits until every rank has, or for ``timeout_seconds``: then the thread is
        left behind (a daemon) and False returned."""
        self._closing = True
        if self._thread is None:
            return True
        self.poke()
        self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            logger.warning(
                "isotherm: not every rank closed its balancer within %g s; the heartbeat of rank %d "
                "is left behind",
                timeout_seconds,
                self._link.rank,
            )
            return False
        return True

    def _run(self) -> None:
        try:
            while self.beat():
                if not self._closing:
                    self._wake.wait(self._interval_seconds)
                self._wake.clear()
        except Exception as error:
            logger.exception("isotherm: the heartbeat of rank %d stopped", self._link.rank)
            self._on_failure(error)

    def _check_rounds(self, rounds_G: Int64Array) -> None:
        strangers = np.flatnonzero(rounds_G != self.rounds)
        if len(strangers):
            rank = int(strangers[0])
            raise ProtocolError(
                f"rank {rank} is in round {rounds_G[rank]}, rank {self._link.rank} in {self.rounds}: "
                "the group is used by somebody else too; give the balancer a group of its own"
            )


class Announcer:
    """Participant: carries bytes from rank 0 to every rank, once each, in the order announced.

    ``deliver`` is called on every rank, in the same round, with the bytes. Their digest travels in the
    header; a rank that received others raises ProtocolError.
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

    def act(self, headers_GW: Int64Array, link: Link) -> None:
        size, digest = (int(word) for word in headers_GW[0])
        if not size:
            return
        data = link.broadcast(self._waiting if link.rank == 0 else None, size, source=0)
        self._waiting = None
        if self._digest(data) != digest:
            raise ProtocolError(f"rank {link.rank} received a plan whose digest is not {digest:#x}")
        self._deliver(data)


def check_peers(link: Link, settings: dict[str, object]) -> None:
    """Compares ``settings`` over all ranks; blocks until every rank has called it.

    Raises:
        PeerMismatchError: on every rank, naming the first setting that differs and its value on two
            ranks.
    """
    lines = [f"{name}={value!r}" for name, value in sorted(settings.items())]
    data = "\n".join(lines).encode()
    sizes_G = link.all_gather(np.array([len(data)], np.int64))[:, 0]
    texts = [
        link.broadcast(data if link.rank == rank else None, int(size), source=rank).decode()
        for rank, size in enumerate(sizes_G)
    ]
    for rank, text in enumerate(texts):
        if text == texts[0]:
            continue
        first, other = set(texts[0].split("\n")), set(text.split("\n"))
        name = min(first ^ other).partition("=")[0]
        raise PeerMismatchError(
            f"rank {rank} was started with {_setting(other, name)}, rank 0 with "
            f"{_setting(first, name)}: start every rank with the same configuration"
        )


def _setting(lines: set[str], name: str) -> str:
    return next((line for line in lines if line.startswith(f"{name}=")), f"no {name}")
