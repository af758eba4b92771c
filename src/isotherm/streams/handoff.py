"""Items that pass from one thread to another, without a lock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Handoff(Generic[Item]):
    """A queue with one thread at each end; what the giver did before ``put`` happens before what the
    taker does after ``try_take``. Neither waits. A deque's append and popleft are atomic, so this is no
    more than a name for the edge, which detectors of races watch."""

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._items = deque(items)

    def __len__(self) -> int:
        """Items handed over and not yet taken, at this moment."""
        return len(self._items)

    def put(self, item: Item) -> None:
        """Hands ``item`` over. The giver touches it no more until it comes back."""
        self._items.append(item)

    def try_take(self) -> Item | None:
        """The oldest item handed over and not yet taken, or None."""
        try:
            return self._items.popleft()
        except IndexError:
            return None
