"""Faults to inject on purpose: a check that cannot fail shows nothing."""

from __future__ import annotations

from collections.abc import Sequence

from isotherm.control import Link
from isotherm.mover import HostTransport
from isotherm.mover.ledger import Fill


class HastyTransport(HostTransport):
    """Says that the first fill has arrived without carrying it, so its slot is published with the
    weights of another expert."""

    _spared = False

    def carry(self, fills: Sequence[Fill], link: Link) -> None:
        first = 0 if self._spared else 1
        self._spared = True
        super().carry(fills[first:], link)
