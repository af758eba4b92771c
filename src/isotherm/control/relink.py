"""A link in the place of one that broke: made by all ranks together, once all have come for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store

from isotherm.control.link import GroupLink, Link
from isotherm.errors import LinkError

_LOOK_SECONDS = 1.0
"""How long one wait for the others lasts; they are waited for as long as it takes."""


class Relink(Protocol):
    """Makes the link of a generation: called with that, and with what says whether to go on waiting. None
    where it says no.

    Raises:
        LinkError: it could not be made, or not on every rank: come again, for the next generation.
        RuntimeError: there is no way to find the others any more.
    """

    def __call__(self, generation: int, goes_on: Callable[[], bool]) -> Link | None: ...


class StoreRelink:
    """Ranks leave word in a store that they have come. When all have, they are all alive and here, and make
    a gloo group of their own under a prefix that the generation names.

    A rank that makes the group where another fails learns of it in its first call, since the sockets of a
    group that is dropped are closed; both then come for the next generation. Nothing of one generation is
    ever used by another.

    Args:
        store: the same on every rank. Whoever waits on a store's connection keeps its other users waiting,
            so this makes one of its own.
        name: the same on every rank, and nobody else's in the store.
        timeout_seconds: the time-out of the new group: how long a rank waits in a call for one that does not
            come, until it takes the link for broken.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        *,
        rank: int,
        size: int,
        make: Callable[[ProcessGroupGloo], Link] = GroupLink,
        timeout_seconds: float = 300.0,
    ) -> None:
        self._store: Store = store.clone()  # type: ignore[attr-defined]
        self._name = name
        self._rank, self._size = rank, size
        self._make = make
        self._timeout = timedelta(seconds=timeout_seconds)

    def __call__(self, generation: int, goes_on: Callable[[], bool]) -> Link | None:
        store = PrefixStore(f"isotherm/{self._name}/{generation}", self._store)
        if store.add("came", 1) == self._size:
            store.set("all", "here")
        while not _has(store, "all"):
            if not goes_on():
                return None
        try:
            prefix = PrefixStore("group", store)
            group = ProcessGroupGloo(prefix, self._rank, self._size, self._timeout)
        except RuntimeError as error:
            raise LinkError(
                f"rank {self._rank} could not make the link of generation {generation}: {error}"
            ) from error
        return self._make(group)


def _has(store: Store, key: str) -> bool:
    """Whether somebody has set ``key``; waits for it a little."""
    try:
        store.wait([key], timedelta(seconds=_LOOK_SECONDS))
    except RuntimeError:  # as each store tells that it waited in vain; one that is lost raises here too
        return store.check([key])
    return True
