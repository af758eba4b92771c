"""What the engine wants to be told, off its thread."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

logger = logging.getLogger("isotherm")

Item = TypeVar("Item")


class Callback(Generic[Item]):
    """The engine's own function, called in the middle of rounds. Other ranks are in these too, so what it
    raises ends nothing: it is logged, once for each function, and everything goes on. ``name`` is what the
    log calls it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._function: Callable[[Item], None] | None = None
        self._failed: Callable[[Item], None] | None = None

    @property
    def is_set(self) -> bool:
        return self._function is not None

    def set(self, function: Callable[[Item], None]) -> None:
        """Calls ``function`` from now on, instead of any before. Any thread."""
        self._function = function

    def __call__(self, item: Item) -> None:
        function = self._function
        if function is None:
            return
        try:
            function(item)
        except Exception:
            if self._failed is not function:
                logger.exception("isotherm: %s's callback raised; it will not be logged again", self._name)
            self._failed = function
