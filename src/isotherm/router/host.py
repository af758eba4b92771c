"""What the CPU kernel is called with: addresses of everything that is the same in every call, made once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from numba import types

from isotherm.arrays import Int64Array
from isotherm.jit import entry
from isotherm.router import kernels, words
from isotherm.router.layout import LayerTables, TablesLayout, TableViews
from isotherm.router.rounding import rounding_base
from isotherm.router.tensors import TENSOR

_COUNTS = (words.SEEN_E, words.FIRST_E, words.MIDDLE_E, words.STOP_E, words.ROW_E)


class Scratch:
    """What a kernel writes to and leaves zero: of one lane, so that two threads may map two micro-batches at
    once."""

    def __init__(self, experts: int, slots: int, ranks: int) -> None:
        self._counts_CE = np.zeros((len(_COUNTS), experts), np.int32)
        self._states_E = np.zeros(experts, np.int64)
        self._loads_G = np.zeros(ranks, np.int64)
        self._lengths_P = np.zeros(slots, np.int32)

    @staticmethod
    def nbytes(experts: int, slots: int, ranks: int) -> int:
        return (4 * len(_COUNTS) + 8) * experts + 4 * slots + 8 * ranks

    def name(self, words_W: Int64Array) -> None:
        """Writes its addresses into the words of a call."""
        for word, counts_E in zip(_COUNTS, self._counts_CE, strict=True):
            words_W[word] = counts_E.ctypes.data
        words_W[words.STATE_E] = self._states_E.ctypes.data
        words_W[words.LENGTH_P] = self._lengths_P.ctypes.data
        words_W[words.LOAD_G] = self._loads_G.ctypes.data


class HostCalls:
    """For each lane and layer the words of a call (`kernels`), and for each lane the kernel's scratch.

    ``addresses`` [micro_batches][layers] are those of the words, for the kernel.
    """

    def __init__(
        self, views: TableViews, rank: int, heat_MKLE: torch.Tensor, received_MLP: torch.Tensor
    ) -> None:
        micro_batches, layers, slots = received_MLP.shape
        self._words_MLW = np.zeros((micro_batches, layers, words.WORDS), np.int64)
        ranks = views.others_LG.shape[1]
        self._scratch = [Scratch(heat_MKLE.shape[3], slots, ranks) for _ in range(micro_batches)]
        for lane, scratch in enumerate(self._scratch):
            for layer, words_W in enumerate(self._words_MLW[lane]):
                _name_memory(
                    words_W, views.layer(layer), heat_MKLE[lane, :, layer], received_MLP[lane, layer]
                )
                words_W[words.BASE] = rounding_base(layer, 0, rank, lane)
                scratch.name(words_W)
        self.addresses = [[words_W.ctypes.data for words_W in words_LW] for words_LW in self._words_MLW]

    @staticmethod
    def nbytes(layout: TablesLayout, micro_batches: int) -> int:
        """Bytes of the words and the scratch."""
        scratch = Scratch.nbytes(layout.experts, layout.slots, layout.ranks)
        return micro_batches * (scratch + 8 * words.WORDS * layout.layers)


def map_once(
    ids_TK: torch.Tensor,
    state: torch.Tensor,
    base: int,
    tables: LayerTables,
    heat_KE: torch.Tensor,
    received_P: torch.Tensor,
) -> torch.Tensor:
    """The slots of contiguous int64 or int32 ids, counted into these very tensors: for a caller that makes
    its own, as a compiler may. Words and scratch are made for this call."""
    words_W = np.zeros(words.WORDS, np.int64)
    scratch = Scratch(len(tables.whole_E), len(tables.slots_P), len(tables.others_G))
    _name_memory(words_W, tables, heat_KE, received_P)
    words_W[words.BASE] = base
    scratch.name(words_W)
    slots_TK = torch.empty_like(ids_TK)
    numbers = (int(number) for number in state.numpy())
    mapped = host_kernel()(words_W.ctypes.data, ids_TK, slots_TK, *numbers)
    assert mapped, "ids as they come here are known to the kernel"
    return slots_TK


@cache
def host_kernel() -> Callable[..., bool]:
    """The CPU's kernel, compiled or loaded from numba's cache at the first call."""
    return entry(kernels.map_ids, types.int64, TENSOR, TENSOR)


def _name_memory(
    words_W: Int64Array,
    tables: LayerTables,
    heat_KE: torch.Tensor,
    received_P: torch.Tensor,
) -> None:
    """Writes the addresses of tables and totals into the words of a call."""
    words_W[words.EXPERTS], words_W[words.SLOTS] = len(tables.whole_E), len(tables.slots_P)
    words_W[words.RANKS], words_W[words.OTHERS_G] = len(tables.others_G), tables.others_G.data_ptr()
    words_W[words.OFFSETS_E1] = tables.offsets_E1.data_ptr()
    words_W[words.SLOTS_P] = tables.slots_P.data_ptr()
    words_W[words.ENDS_P] = tables.ends_P.data_ptr()
    words_W[words.WHOLE_E] = tables.whole_E.data_ptr()
    words_W[words.SPLIT_E1] = tables.split_E1.data_ptr()
    words_W[words.PREFILL_E], words_W[words.DECODE_E] = heat_KE[0].data_ptr(), heat_KE[1].data_ptr()
    words_W[words.RECEIVED_P] = received_P.data_ptr()
