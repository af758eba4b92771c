"""Items made on a thread of their own, a few before they are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")

DEPTH = 4
"""So many are made before they are asked for: as many are in memory."""


def made_ahead(items: Iterable[_Item], make: Callable[[_Item], _Made], *, threads: int) -> Iterator[_Made]:
    """``make(item)`` of each item, in order. With two threads or more another one takes the items and makes
    them, one after the other, while the caller works on those before; with one it is `map`.

    What items or ``make`` raise is raised where the item would have come. Whoever stops asking before the end
    waits for at most ``DEPTH`` more to be made.
    """
    made = map(make, items)
    if threads < 2:
        yield from made
        return
    with ThreadPoolExecutor(1, "isotherm-ahead") as pool:
        waiting: deque[Future[list[_Made]]] = deque(pool.submit(_take, made) for _ in range(DEPTH))
        try:
            while found := waiting.popleft().result():
                waiting.append(pool.submit(_take, made))
                yield found[0]
        finally:
            for future in waiting:
                future.cancel()


def _take(made: Iterator[_Made]) -> list[_Made]:
    """The next, or nothing at the end."""
    return list(islice(made, 1))
