"""The running totals: added to in place, at fixed addresses, never cleared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from isotherm.topology import MoEShape
from isotherm.window import KINDS

_WORD_BYTES = 4


@dataclass(frozen=True)
class TotalsLayout:
    """Where counts stand in a row of words: heat [kinds, layers, experts], then tokens per kind, then
    loads [layers, slots], then, where they are counted (``active``), steps in which experts had a token
    [layers, experts]. ``slots`` is what each layer has a load for: 0 where loads are not known, the slots of
    this rank where it counts what they received, all slots where it maps."""

    shape: MoEShape
    slots: int
    active: bool = False

    @property
    def heat_shape(self) -> tuple[int, int, int]:
        return len(KINDS), self.shape.layers, self.shape.experts

    @property
    def heat_words(self) -> int:
        return len(KINDS) * self.shape.layers * self.shape.experts

    @property
    def reduced_words(self) -> int:
        """Heat and tokens: what is summed over the ranks for every slice."""
        return self.heat_words + len(KINDS)

    @property
    def slot_words(self) -> int:
        return self.shape.layers * self.slots

    @property
    def counted_words(self) -> int:
        """All but the steps."""
        return self.reduced_words + self.slot_words

    @property
    def words(self) -> int:
        return self.counted_words + self.active * self.shape.layers * self.shape.experts

    def row_bytes(self, rows: int = 1) -> int:
        return rows * self.words * _WORD_BYTES

    def heat_of(self, row_W: Any) -> Any:
        """The heat [..., kinds, layers, experts] in rows of words, as a view."""
        return row_W[..., : self.heat_words].reshape(*row_W.shape[:-1], *self.heat_shape)

    def tokens_of(self, row_W: Any) -> Any:
        """The tokens per kind [..., kinds] in rows of words, as a view."""
        return row_W[..., self.heat_words : self.reduced_words]

    def slots_of(self, row_W: Any) -> Any:
        """The loads [..., layers, slots] in rows of words, as a view."""
        slots_W = row_W[..., self.reduced_words : self.counted_words]
        return slots_W.reshape(*row_W.shape[:-1], self.shape.layers, self.slots)

    def active_of(self, row_W: Any) -> Any:
        """The steps [..., layers, experts] in rows of words, as a view; only where they are counted."""
        active_W = row_W[..., self.counted_words :]
        return active_W.reshape(*row_W.shape[:-1], self.shape.layers, self.shape.experts)


class Totals:
    """Counts since the start, modulo 2^32, as views of one int32 tensor ``rows_MW`` on the device.

    Each row belongs to one stream, which alone adds to it: one for each micro-batch of a step, and with
    ``aside`` one more, the last, for the side stream. Rows are added up on the host. Read them as
    unsigned: differences of two copies are right as long as fewer than 2^32 tokens lie between.
    """

    def __init__(
        self, layout: TotalsLayout, micro_batches: int, device: torch.device, *, aside: bool = False
    ) -> None:
        self.layout = layout
        self.micro_batches = micro_batches
        self.rows_MW = torch.zeros((micro_batches + aside, layout.words), dtype=torch.int32, device=device)
        self.main_MW = self.rows_MW[:micro_batches]
        self.aside_MW = self.rows_MW[micro_batches:]
        self.heat_MKLE: torch.Tensor = layout.heat_of(self.rows_MW)
        self.tokens_MK: torch.Tensor = layout.tokens_of(self.rows_MW)
        self.slots_MLP: torch.Tensor = layout.slots_of(self.rows_MW)

    @property
    def active_LE(self) -> torch.Tensor:
        """Steps in which experts had a token, in the first row alone."""
        active_LE: torch.Tensor = self.layout.active_of(self.rows_MW[0])
        return active_LE
