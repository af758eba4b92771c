"""Who wants to be told, of the engine's own code, off its thread."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger("isotherm")

Item = TypeVar("Item")


class Callbacks(Generic[Item]):
    """The engine's own functions, called in the middle of rounds, in the order they came. Other ranks
    are in these too, so what one raises ends nothing and keeps nothing from the others: it is logged, once
    for each function. ``name`` is what the log calls them."""

    def __init__(self, name: str) -> None:
        self._name = name
        # Replaced, never changed: another thread may be going through the old one.
        self._functions: tuple[Callable[[Item], None], ...] = ()
        self._failed: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._functions)

    def add(self, function: Callable[[Item], None]) -> None:
        """Calls ``function`` too, from now on. Any thread."""
        self._functions = (*self._functions, function)

    def __call__(self, item: Item) -> None:
        for index, function in enumerate(self._functions):
            try:
                function(item)
            except Exception:
                if index not in self._failed:
                    logger.exception("isotherm: %s's callback raised; not logged again", self._name)
                self._failed.add(index)
