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
from isotherm.status import FailureKind, State

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

_COME_LATER: dict[str, frozenset[State]] = {
    "planner raises": frozenset({State.PLANNING}),
    "planner hangs": frozenset({State.PLANNING}),
    "transfer fails": frozenset(State) - {State.MOVING},
}
"""States that come while what goes wrong is under way already: an attempt begins before anybody is told of
it, and a transfer goes on when it is late and was called off."""

_LOOK_SECONDS = 0.0005


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

    Attributes:
        kind: what it is counted as where it lasts longer than a deadline.
        has_fired: whether it has happened, on this rank.
        struck_in: the state that the rank told when it happened; None before.
    """

    def __init__(
        self, rank: int, step: int, what: What, seconds: float, state: State | None, patience_steps: int
    ) -> None:
        self.rank = rank
        self.step = step
        self.what = what
        self.seconds = seconds
        self.state = state
        is_late = what == "transfer fails" and state not in (None, State.MOVING)
        self.kind: FailureKind = "transfer_late" if is_late else _KINDS[what]
        self.struck_in: State | None = None
        self._patience_steps = patience_steps
        self._is_begun = False
        self._look: Callable[[], tuple[int, State]] = lambda: (-1, State.OBSERVING)
        self._is_over = threading.Event()

    @property
    def has_fired(self) -> bool:
        return self.struck_in is not None

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

        def look() -> tuple[int, State]:
            now = balancer.statistics()
            return now.steps, now.state

        self._look = look
        owner, name, happen = self._place(balancer)
        self._wrap(owner, name, happen)

    def is_due(self, step: int, state: State) -> bool:
        """Whether it may happen to a rank in ``state`` that has ended ``step``."""
        is_there = self.state is None or state is self.state
        return step >= self.step and (is_there or step >= self.step + self._patience_steps)

    def strike(self, state: State) -> None:
        """It happens now, to a rank in ``state``."""
        self.struck_in = state

    def _may_begin(self) -> bool:
        step, state = self._look()
        comes_later = self.state in _COME_LATER.get(self.what, ())
        return self.is_due(step, state) or (comes_later and step >= self.step)

    def _strike(self) -> None:
        """It happens now, or, where its state comes later, as soon as that has come."""
        first, state = self._look()
        step = first if self.state in _COME_LATER.get(self.what, ()) else first + self._patience_steps
        while state is not self.state and step < first + self._patience_steps:
            is_over = self._is_over.wait(_LOOK_SECONDS)
            step, state = self._look()
            if is_over:
                break
        self.strike(state)

    def _place(self, balancer: Balancer) -> tuple[Any, str, Callable[..., Any]]:
        """What is called when it happens: an attribute, and what takes its place once."""
        carrier = balancer._rooms.carrier
        transport = None if carrier is None else carrier._transport
        if self.what.startswith("transfer") and transport is None:
            raise ValueError(f"{self.what!r} needs a balancer that moves weights: build it with weights=")
        places: dict[str, tuple[Any, str, Callable[..., Any]]] = {
            "planner raises": (balancer._loop, "_plan", self._raise),
            "planner hangs": (balancer._loop, "_plan", self._sleep_before),
            "wrong digest": (balancer._loop.announcer, "_digest", self._falsify),
            "transfer fails": (transport, "carry", self._spoil),
            "transfer late": (transport, "carry", self._sleep_before),
            "rank pauses": (balancer._forward, "begin", self._pause_before),
        }
        return places[self.what]

    def _wrap(self, owner: Any, name: str, happen: Callable[..., Any]) -> None:
        real = getattr(owner, name)

        def call(*args: Any) -> Any:
            if self._is_begun or not self._may_begin():
                return real(*args)
            self._is_begun = True
            if getattr(owner, name) is call:  # not under another fault
                setattr(owner, name, real)
            return happen(real, *args)

        setattr(owner, name, call)

    def _raise(self, real: Callable[..., Any], *args: Any) -> Any:
        self._strike()
        raise RuntimeError(f"{self.what}, on purpose")

    def _falsify(self, real: Callable[..., Any], data: bytes) -> int:
        self._strike()
        return int(real(data)) ^ 1

    def _sleep_before(self, real: Callable[..., Any], *args: Any) -> Any:
        self._strike()
        self._is_over.wait(self.seconds)
        return real(*args)

    def _spoil(self, real: Callable[..., Any], fills: Sequence[Fill], link: Link) -> None:
        """Half of the bytes have come, and they are wrong. The other ranks' part of the call is made."""
        transport = real.__self__  # type: ignore[attr-defined]
        real(fills, link)
        self._strike()
        for fill in fills:
            if transport._topology.rank_of(fill.target) == link.rank:
                for view in transport._weights.target(fill):
                    view[: len(view) // 2 + 1].zero_()
        raise RuntimeError("transfer fails, on purpose")

    def _pause_before(self, real: Callable[..., Any], *args: Any) -> Any:
        """Stops this process, all its threads; another one lets it go on."""
        self._strike()
        wake = f"import os, signal, time; time.sleep({self.seconds}); os.kill({os.getpid()}, signal.SIGCONT)"
        with subprocess.Popen([sys.executable, "-S", "-c", wake]):
            os.kill(os.getpid(), signal.SIGSTOP)
        return real(*args)


class _BreakingLink:
    """A link that breaks in the middle of a round, the same on every rank: all have its headers, and one rank
    gets as far as it can without the others, who do not even act. Counts no bytes."""

    def __init__(self, link: Link, fault: Fault, state: Callable[[], State]) -> None:
        self._link = link
        self._fault = fault
        self._state = state
        self._is_broken = False
        self.rank, self.size = link.rank, link.size
        self.sent_bytes = 0

    @classmethod
    def put_into(cls, balancer: Balancer, fault: Fault) -> None:
        watch = balancer._loop.watch
        # As the last round left it: the same on all ranks, whatever one of them says of a round that is late.
        balancer._heartbeat._link = cls(balancer._heartbeat._link, fault, lambda: watch.life.state)

    def all_gather(self, words_W: Any, out: Any = None) -> Any:
        self._check()
        gathered_GW = self._link.all_gather(words_W, out)
        # Headers alone are gathered in place; all ranks read the same of them.
        is_round, state = out is not None, self._state()
        if is_round and not self._fault.has_fired and self._fault.is_due(step_of(out), state):
            self._is_broken = True
            self._fault.strike(state)
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


def fail_at(
    rank: int,
    step: int,
    what: What,
    *,
    seconds: float = 30.0,
    state: State | None = None,
    patience_steps: int = 1000,
) -> Fault:
    """A fault of ``rank``, at the first occasion from ``step`` on, once; ``arm`` puts it into a balancer.

    Args:
        seconds: how long what lasts goes on, unless it is ended sooner (`Fault.end`).
        what: ``planner raises`` and ``planner hangs`` (for ``seconds``) happen on rank 0 alone, which plans.
            ``wrong digest``: the rank finds another digest of a plan than it has. ``transfer fails``: half
            the bytes of its part of a transfer come wrong, and it raises; ``transfer late``: it begins its
            part ``seconds`` later. ``link breaks``: the heartbeat's link of all ranks, in the same round, of
            which this rank alone takes in what it can; to be armed on all before any ends ``step``.
            ``rank pauses``: its process is stopped for ``seconds`` (SIGSTOP).
        state: it happens while the rank tells this state; None: in any. An attempt to plan waits until it is
            known to all; a transfer that is to fail in another state than moving is late until that comes.
        patience_steps: after so many steps in which that did not come about it happens in any state.

    Raises:
        ValueError: an unknown fault, or one of the planner on another rank than 0.
    """
    if what not in get_args(What):
        raise ValueError(f"what={what!r} is unknown: choose one of {', '.join(get_args(What))}")
    if what.startswith("planner") and rank:
        raise ValueError(f"{what!r} on rank {rank} never happens: rank 0 plans")
    if what == "rank pauses" and not hasattr(signal, "SIGSTOP"):
        raise ValueError("this system has no SIGSTOP, so no rank can be made to pause")
    return Fault(rank, step, what, seconds, state, patience_steps)
