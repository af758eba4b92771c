"""The process that threads were started in."""

from __future__ import annotations

import os

from isotherm.errors import IsothermError


class Home:
    """Remembers the process in which ``what`` was built: its threads do not survive a fork."""

    __slots__ = ("_process", "_what")

    def __init__(self, what: str) -> None:
        self._what = what
        self._process = os.getpid()

    @property
    def is_here(self) -> bool:
        """Whether this is that process, and no copy of it."""
        return os.getpid() == self._process

    def check(self) -> None:
        """Raises IsothermError in a copy."""
        if os.getpid() != self._process:
            raise IsothermError(
                f"this {self._what} was built in process {self._process}, and this is a copy of it: threads "
                f"do not survive a fork; build the {self._what} in the process that serves, or start that by "
                "spawn"
            )
