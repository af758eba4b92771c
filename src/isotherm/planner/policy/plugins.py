"""What is offered by name: ours, and what other packages offer under an entry point group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Generic, TypeVar

_Offer = TypeVar("_Offer")


@dataclass(frozen=True)
class Plugins(Generic[_Offer]):
    """Everything of one ``kind``, which is how the setting is called that names it; ours cannot be
    replaced."""

    kind: str
    group: str
    ours: Mapping[str, _Offer]

    def names(self) -> tuple[str, ...]:
        """All names, ours first."""
        others = {entry.name for entry in entry_points(group=self.group)} - self.ours.keys()
        return (*self.ours, *sorted(others))

    def get(self, name: str) -> _Offer:
        """What has that name.

        Raises:
            ValueError: there is none, or the package that offers it cannot be loaded.
        """
        if name in self.ours:
            return self.ours[name]
        for entry in entry_points(group=self.group, name=name):
            try:
                offer: _Offer = entry.load()
            except Exception as error:
                raise ValueError(
                    f"{self.kind}={name!r} of {entry.value} cannot be loaded: {error}"
                ) from error
            return offer
        raise ValueError(f"{self.kind}={name!r} is unknown: choose one of {', '.join(self.names())}")
