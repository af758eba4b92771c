"""How the tables of all layers lie in one block of memory, so that one copy puts them in force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from isotherm.router.tables import RoutingTables


class TableViews(NamedTuple):
    """Tables of all layers as tensors: the arrays of `RoutingTables`."""

    offsets_LE1: torch.Tensor
    slots_LP: torch.Tensor
    ends_LP: torch.Tensor


@dataclass(frozen=True)
class TablesLayout:
    """The places of ends, offsets and slots, in this order, in a block of bytes: ends first, since they
    are the widest and the block is aligned for them."""

    layers: int
    experts: int
    slots: int

    @classmethod
    def of(cls, tables: RoutingTables) -> TablesLayout:
        layers, slots = tables.slots.shape
        return cls(layers, tables.offsets.shape[1] - 1, slots)

    @property
    def nbytes(self) -> int:
        return self.layers * (8 * self.slots + 4 * (self.experts + 1) + 4 * self.slots)

    def views(self, block: torch.Tensor) -> TableViews:
        """The tables in ``block``, uint8 [nbytes]."""
        offsets_at = 8 * self.layers * self.slots
        slots_at = offsets_at + 4 * self.layers * (self.experts + 1)
        ends, offsets, slots = block[:offsets_at], block[offsets_at:slots_at], block[slots_at:]
        return TableViews(
            offsets_LE1=offsets.view(torch.int32).view(self.layers, self.experts + 1),
            slots_LP=slots.view(torch.int32).view(self.layers, self.slots),
            ends_LP=ends.view(torch.int64).view(self.layers, self.slots),
        )

    def fill(self, block: torch.Tensor, tables: RoutingTables) -> None:
        """Copies ``tables`` into ``block``, which lies on the host.

        Raises:
            ValueError: tables of another shape.
        """
        given = TablesLayout.of(tables)
        if given != self:
            raise ValueError(
                f"tables for {given.layers} layers, {given.experts} experts and {given.slots} slots given, "
                f"this router has {self.layers}, {self.experts} and {self.slots}: build them for one model"
            )
        for target, source in zip(self.views(block), tables.arrays, strict=True):
            target.numpy()[...] = source
