"""Faults to inject on purpose: a check that cannot fail shows nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from isotherm.balancer import Balancer
from isotherm.control import Link
from isotherm.control.heartbeat import step_of
from isotherm.errors import LinkError
from isotherm.mover import HostTransport
from isotherm.mover.schedule import Fill
from isotherm.status import FailureKind

What = Literal[
    "planner raises",
    "planner hangs",
    "wrong digest",
    "transfer fails",
    "transfer late",
    "link breaks",
    "rank pauses",
]


_KINDS: dict[str, FailureKind] = {
    "planner raises": "planner_raised",
    "planner hangs": "planner_late",
    "wrong digest": "plan_refused",
    "transfer fails": "transfer_failed",
    "transfer late": "transfer_late",
    "link breaks": "link_lost",
    "rank pauses": "stalled",
}


class HastyTransport(HostTransport):
    """Says that the first fill has arrived without carrying it, so its slot is published with the
    weights of another expert."""

    _spared = False

    def carry(self, fills: Sequence[Fill], link: Link) -> None:
        first = 0 if self._spared else 1
        self._spared = True
        super().carry(fills[first:], link)


class Fault:
    """Something that goes wrong once, on one rank, at the first occasion from a step on. See `fail_at`.

    ``kind``: what it is counted as where it lasts longer than a deadline.
    """

    def __init__(self, rank: int, step: int, what: What, seconds: float) -> None:
        self.rank = rank
        self.step = step
        self.what = what
        self.seconds = seconds
        self.kind = _KINDS[what]
        self.has_fired = False
        self._now: Callable[[], bool] = lambda: False
        self._is_over = threading.Event()

    def end(self) -> None:
        """Ends what lasts, sooner than after its seconds; not a pause. Once ended it may still happen, and
        takes no time then."""
        self._is_over.set()

    def arm(self, balancer: Balancer) -> None:
        """Puts the fault into ``balancer``. Called on every rank; other ranks stay as they are, unless it is
        the link that breaks."""
        if self.what == "link breaks":
            _BreakingLink.put_into(balancer, self)
        if balancer.rank != self.rank or self.what == "link breaks":
            return
        self._now = lambda: balancer.statistics().steps >= self.step
        owner, name, happen = self._place(balancer)
        self._wrap(owner, name, happen)

    def _place(self, balancer: Balancer) -> tuple[Any, str, Callable[..., Any]]:
        """What is called when it happens: an attribute, and what takes its place once."""
        carrier = balancer._rooms.carrier
        transport = None if carrier is None else carrier._transport
        if self.what.startswith("transfer") and transport is None:
            raise ValueError(f"{self.what!r} needs a balancer that moves weights: build it with weights=")
        places: dict[str, tuple[Any, str, Callable[..., Any]]] = {
            "planner raises": (balancer._loop, "_plan", self._raise),
            "planner hangs": (balancer._loop, "_plan", self._sleep_before),
            "wrong digest": (balancer._loop.announcer, "_digest", lambda real, data: int(real(data)) ^ 1),
            "transfer fails": (transport, "carry", self._spoil),
            "transfer late": (transport, "carry", self._sleep_before),
            "rank pauses": (balancer._forward, "begin", self._pause_before),
        }
        return places[self.what]

    def _wrap(self, owner: Any, name: str, happen: Callable[..., Any]) -> None:
        real = getattr(owner, name)

        def call(*args: Any) -> Any:
            if self.has_fired or not self._now():
                return real(*args)
            self.has_fired = True
            if getattr(owner, name) is call:  # not under another fault
                setattr(owner, name, real)
            return happen(real, *args)

        setattr(owner, name, call)

    def _raise(self, real: Callable[..., Any], *args: Any) -> Any:
        raise RuntimeError(f"{self.what}, on purpose")

    def _sleep_before(self, real: Callable[..., Any], *args: Any) -> Any:
        self._is_over.wait(self.seconds)
        return real(*args)

    def _spoil(self, real: Callable[..., Any], fills: Sequence[Fill], link: Link) -> None:
        """Half of the bytes have come, and they are wrong. The other ranks' part of the call is made."""
        transport = real.__self__  # type: ignore[attr-defined]
        real(fills, link)
        for fill in fills:
            if transport._topology.rank_of(fill.target) == link.rank:
                for view in transport._weights.target(fill):
                    view[: len(view) // 2 + 1].zero_()
        raise RuntimeError("transfer fails, on purpose")

    def _pause_before(self, real: Callable[..., Any], *args: Any) -> Any:
        """Stops this process, all its threads; another one lets it go on."""
        wake = f"import os, signal, time; time.sleep({self.seconds}); os.kill({os.getpid()}, signal.SIGCONT)"
        with subprocess.Popen([sys.executable, "-S", "-c", wake]):
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(*args)


class _BreakingLink:
    """A link that breaks in the middle of a round, the same on every rank: all have its headers, and one rank
    gets as far as it can without the others, who do not even act. Counts no bytes."""

    def __init__(self, link: Link, fault: Fault) -> None:
        self._link = link
        self._fault = fault
        self._is_broken = False
        self.rank, self.size = link.rank, link.size
        self.sent_bytes = 0

    @classmethod
    def put_into(cls, balancer: Balancer, fault: Fault) -> None:
        balancer._heartbeat._link = cls(balancer._heartbeat._link, fault)

    def all_gather(self, words_W: Any, out: Any = None) -> Any:
        self._check()
        gathered_GW = self._link.all_gather(words_W, out)
        # Headers alone are gathered in place; all ranks read the same of them.
        if out is not None and not self._fault.has_fired and step_of(out) >= self._fault.step:
            self._is_broken = self._fault.has_fired = True
            if self.rank != self._fault.rank:
                self._check()
        return gathered_GW

    def all_reduce(self, array: Any) -> None:
        self._check()
        self._link.all_reduce(array)

    def broadcast(self, data: bytes | None, size: int, source: int) -> bytes:
        self._check()
        return self._link.broadcast(data, size, source)

    def exchange(self, sends: Any, receives: Any) -> None:
        self._link.exchange(sends, receives)

    def _check(self) -> None:
        if self._is_broken:
            raise LinkError("link breaks, on purpose")


def fail_at(rank: int, step: int, what: What, *, seconds: float = 30.0) -> Fault:
    """A fault of ``rank``, at the first occasion from ``step`` on, once; ``arm`` puts it into a balancer.

    Args:
        seconds: how long what lasts goes on, unless it is ended sooner (`Fault.end`).
        what: ``planner raises`` and ``planner hangs`` (for ``seconds``) happen on rank 0 alone, which plans.
            ``wrong digest``: the rank finds another digest of a plan than it has. ``transfer fails``: half
            the bytes of its part of a transfer come wrong, and it raises; ``transfer late``: it begins its
            part ``seconds`` later. ``link breaks``: the heartbeat's link of all ranks, in the same round, of
            which this rank alone takes in what it can; to be armed on all before any ends ``step``.
            ``rank pauses``: its process is stopped for ``seconds`` (SIGSTOP).

    Raises:
        ValueError: an unknown fault, or one of the planner on another rank than 0.
    """
    if what not in get_args(What):
        raise ValueError(f"what={what!r} is unknown: choose one of {', '.join(get_args(What))}")
    if what.startswith("planner") and rank:
        raise ValueError(f"{what!r} on rank {rank} never happens: rank 0 plans")
    if what == "rank pauses" and not hasattr(signal, "SIGSTOP"):
        raise ValueError("this system has no SIGSTOP, so no rank can be made to pause")
    return Fault(rank, step, what, seconds)
