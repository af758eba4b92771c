"""Schedules: which ready stream of the simulated device goes next.

A schedule is asked wherever the order is free and somebody could tell: when the host looks at the
device (a query, a wait, an access to pinned memory), with everything enqueued so far to choose from.
Orders that differ only in when the host enqueued are the same order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

MAIN = "main"
"""The name of the engine's first stream."""


class Schedule(Protocol):
    """A source of choices. Its ``repr`` makes the same schedule again."""

    def choose_stream(self, ready: Sequence[str], *, may_stop: bool) -> int | None:
        """The index in ``ready`` (names, never empty) of the stream that runs its next operation; None, if
        it ``may_stop``: the host goes on first. Where the host waits, the first is one that it needs."""

    def choose(self, number: int) -> int:
        """One of ``number`` ways in which a program may go on, from 0."""


@dataclass
class MainFirst:
    """Main runs as soon as it can, the side as late as it may."""

    def choose_stream(self, ready: Sequence[str], *, may_stop: bool) -> int | None:
        if MAIN in ready:
            return ready.index(MAIN)
        return None if may_stop else 0

    def choose(self, number: int) -> int:
        return 0


@dataclass
class SideFirst:
    """The side runs as soon as it can, main as late as it may."""

    def choose_stream(self, ready: Sequence[str], *, may_stop: bool) -> int | None:
        for index, name in enumerate(ready):
            if name != MAIN:
                return index
        return None if may_stop else 0

    def choose(self, number: int) -> int:
        return number - 1


@dataclass
class RoundRobin:
    """One operation of each stream in turn; the host goes on after every 32."""

    _turn: int = field(default=0, repr=False)

    def choose_stream(self, ready: Sequence[str], *, may_stop: bool) -> int | None:
        self._turn += 1
        if may_stop and self._turn % 32 == 0:
            return None
        return self._turn % len(ready)

    def choose(self, number: int) -> int:
        self._turn += 1
        return self._turn % number


class Seeded:
    """Random, and the same for the same seed. Under some seeds the device has done everything when the host
    looks, under others a hundred operations more, or three, or hardly any; main may be faster than the side,
    or slower."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = random.Random(seed)
        self._stop_ratio = self._random.choice((0.0, 0.01, 0.03, 0.3, 0.9))
        self._main_weight = self._random.choice((0.1, 1.0, 1.0, 10.0))

    def __repr__(self) -> str:
        return f"Seeded({self._seed})"

    def choose_stream(self, ready: Sequence[str], *, may_stop: bool) -> int | None:
        if may_stop and self._random.random() < self._stop_ratio:
            return None
        weights = [self._main_weight if name == MAIN else 1.0 for name in ready]
        return self._random.choices(range(len(ready)), weights)[0]

    def choose(self, number: int) -> int:
        return self._random.randrange(number)


class Replayed:
    """Follows ``prefix`` and then takes the first way at each choice: one path of a systematic search."""

    def __init__(self, prefix: Sequence[int] = ()) -> None:
        self.taken: list[tuple[int, int]] = []  # what was chosen, of how many
        self._prefix = tuple(prefix)

    def __repr__(self) -> str:
        return f"Replayed({[choice for choice, _ in self.taken]})"

    def choose_stream(self, ready: Sequence[str], *, may_stop: bool) -> int | None:
        choice = self.choose(len(ready) + may_stop)
        return choice if choice < len(ready) else None

    def choose(self, number: int) -> int:
        if number == 1:
            return 0
        depth = len(self.taken)
        choice = self._prefix[depth] if depth < len(self._prefix) else 0
        self.taken.append((choice, number))
        return choice

    def next_prefix(self) -> tuple[int, ...] | None:
        """The path after this one, depth first; None where this was the last."""
        taken = list(self.taken)
        while taken:
            choice, number = taken.pop()
            if choice + 1 < number:
                return (*(earlier for earlier, _ in taken), choice + 1)
        return None


PLAIN: tuple[Callable[[], Schedule], ...] = (MainFirst, SideFirst, RoundRobin)
"""Schedules without chance."""


def ordinary_schedules(seeds: Sequence[int]) -> Iterator[Schedule]:
    """The plain ones, then one for each seed."""
    for make in PLAIN:
        yield make()
    for seed in seeds:
        yield Seeded(seed)
