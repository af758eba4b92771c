"""How the tables of all layers lie in one block of memory, so that one copy puts them in force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from isotherm.router.tables import RoutingTables, fill_whole


class LayerTables(NamedTuple):
    """The tables of one layer."""

    offsets_E1: torch.Tensor
    slots_P: torch.Tensor
    ends_P: torch.Tensor
    whole_E: torch.Tensor
    others_G: torch.Tensor
    split_E1: torch.Tensor


class TableViews(NamedTuple):
    """Tables of all layers as tensors: the arrays of `RoutingTables`, and for a CPU what its kernel would
    else find out for each batch (`tables.fill_whole`); elsewhere ``whole`` and ``split`` have no columns."""

    offsets_LE1: torch.Tensor
    slots_LP: torch.Tensor
    ends_LP: torch.Tensor
    whole_LE: torch.Tensor
    others_LG: torch.Tensor
    split_LE1: torch.Tensor

    def layer(self, layer: int) -> LayerTables:
        return LayerTables(*(table[layer] for table in self))


@dataclass(frozen=True)
class TablesLayout:
    """The places of the tables in a block of bytes, the widest first, since the block is aligned for
    them. ``on_host``: with what the CPU's kernel wants besides. ``ranks``: those whose loads each batch
    levels, 0 where it is split by shares."""

    layers: int
    experts: int
    slots: int
    on_host: bool
    ranks: int = 0

    @classmethod
    def of(cls, tables: RoutingTables, on_host: bool) -> TablesLayout:
        layers, slots = tables.slots.shape
        return cls(layers, tables.offsets.shape[1] - 1, slots, on_host, tables.others.shape[1])

    @property
    def _columns(self) -> dict[str, tuple[torch.dtype, int]]:
        """Type and columns of each table, in their order in the block."""
        return {
            "ends_LP": (torch.int64, self.slots),
            "whole_LE": (torch.int64, self.experts * self.on_host),
            "others_LG": (torch.int64, self.ranks),
            "offsets_LE1": (torch.int32, self.experts + 1),
            "slots_LP": (torch.int32, self.slots),
            "split_LE1": (torch.int32, (self.experts + 1) * self.on_host),
        }

    @property
    def nbytes(self) -> int:
        return sum(self.layers * columns * dtype.itemsize for dtype, columns in self._columns.values())

    def views(self, block: torch.Tensor) -> TableViews:
        """The tables in ``block``, uint8 [nbytes]."""
        views, begin = {}, 0
        for name, (dtype, columns) in self._columns.items():
            end = begin + self.layers * columns * dtype.itemsize
            views[name] = block[begin:end].view(dtype).view(self.layers, columns)
            begin = end
        return TableViews(**views)

    def fill(self, block: torch.Tensor, tables: RoutingTables) -> None:
        """Copies ``tables`` into ``block``, which lies on the host.

        Raises:
            ValueError: tables of another shape.
        """
        given = TablesLayout.of(tables, self.on_host)
        if given != self:
            raise ValueError(
                f"tables for {given.layers} layers, {given.experts} experts, {given.slots} slots and "
                f"{given.ranks} ranks to level given, this router has {self.layers}, {self.experts}, "
                f"{self.slots} and {self.ranks}: build them for one model, all in one way"
            )
        offsets_LE1, slots_LP, ends_LP, whole_LE, others_LG, split_LE1 = (
            view.numpy() for view in self.views(block)
        )
        offsets_LE1[...], slots_LP[...], ends_LP[...] = tables.arrays
        others_LG[...] = tables.others
        if self.on_host:
            fill_whole(tables, whole_LE, split_LE1)
