"""Tables on their way from the thread that makes them to the engine's, which puts them in force."""

from __future__ import annotations

from isotherm.router.router import Router
from isotherm.router.staging import Staged
from isotherm.router.tables import RoutingTables
from isotherm.streams import Backend, Handoff


class TableShelf:
    """Tables of ascending epochs, left by one thread and loaded by the engine's. Nobody waits.

    Where both staging buffers are on their way, the newest tables wait here until one comes back; those
    of an epoch that was never staged are replaced by a newer one's, which are right in their place.
    """

    def __init__(self, router: Router, backend: Backend) -> None:
        self._router = router
        self._staged: Handoff[tuple[int, Staged]] = backend.handoff()
        self._waiting: tuple[int, RoutingTables] | None = None
        self.newest_staged = 0
        """The newest epoch that lies ready. Written by the thread that makes tables."""

    def leave(self, epoch: int, tables: RoutingTables) -> None:
        """Leaves the tables of ``epoch``. On the thread that makes them."""
        self._waiting = (epoch, tables)
        self.retry()

    def retry(self) -> None:
        """Stages what had to wait, if a buffer came back. On the thread that makes tables."""
        if self._waiting is None:
            return
        epoch, tables = self._waiting
        staged = self._router.try_stage(tables)
        if staged is not None:
            self._staged.put((epoch, staged))
            self._waiting = None
            self.newest_staged = epoch

    def load_newest(self) -> int | None:
        """Puts what was left in force, in order, from here on in the order of the engine's stream; the
        newest epoch, or None where nothing was left. On the engine's thread, between steps."""
        newest: int | None = None
        while (left := self._staged.try_take()) is not None:
            newest, staged = left
            self._router.load(staged)
        return newest
