"""What the CPU kernel is called with: addresses of everything that is the same in every call, made once."""

from __future__ import annotations

import numpy as np
import torch

from isotherm.arrays import Int64Array
from isotherm.router import kernels
from isotherm.router.layout import TableViews
from isotherm.router.rounding import rounding_base

_COUNTS = (kernels.SEEN_E, kernels.FIRST_E, kernels.MIDDLE_E, kernels.STOP_E, kernels.ROW_E)


class HostCalls:
    """For each lane and layer the words of a call (`kernels`), and for each lane the kernel's scratch, so
    that two threads may map two micro-batches at once.

    ``addresses`` [micro_batches][layers] are those of the words, for the kernel.
    """

    def __init__(
        self, views: TableViews, rank: int, heat_MKLE: torch.Tensor, received_MLP: torch.Tensor
    ) -> None:
        micro_batches, layers, slots = received_MLP.shape
        experts = heat_MKLE.shape[3]
        # Zero between any two calls, as the kernel expects and leaves it.
        self._counts_MCE = np.zeros((micro_batches, len(_COUNTS), experts), np.int32)
        self._states_ME = np.zeros((micro_batches, experts), np.int64)
        self._lengths_MP = np.zeros((micro_batches, slots), np.int32)
        self._words_MLW = np.zeros((micro_batches, layers, kernels.WORDS), np.int64)
        self._owned = views, heat_MKLE, received_MLP
        for lane in range(micro_batches):
            for layer in range(layers):
                words_W = self._words_MLW[lane, layer]
                words_W[kernels.EXPERTS], words_W[kernels.SLOTS] = experts, slots
                words_W[kernels.BASE] = rounding_base(layer, 0, rank, lane)
                self._fill_tables(words_W, views, layer)
                words_W[kernels.PREFILL_E] = heat_MKLE[lane, 0, layer].data_ptr()
                words_W[kernels.DECODE_E] = heat_MKLE[lane, 1, layer].data_ptr()
                words_W[kernels.RECEIVED_P] = received_MLP[lane, layer].data_ptr()
                self._fill_scratch(words_W, lane)
        self.addresses = [[words_W.ctypes.data for words_W in words_LW] for words_LW in self._words_MLW]

    @staticmethod
    def nbytes(layers: int, experts: int, slots: int, micro_batches: int) -> int:
        """Bytes of the words and the scratch."""
        scratch = (4 * len(_COUNTS) + 8) * experts + 4 * slots
        return micro_batches * (scratch + 8 * kernels.WORDS * layers)

    def _fill_tables(self, words_W: Int64Array, views: TableViews, layer: int) -> None:
        words_W[kernels.OFFSETS_E1] = views.offsets_LE1[layer].data_ptr()
        words_W[kernels.SLOTS_P] = views.slots_LP[layer].data_ptr()
        words_W[kernels.ENDS_P] = views.ends_LP[layer].data_ptr()
        words_W[kernels.WHOLE_E] = views.whole_LE[layer].data_ptr()
        words_W[kernels.SPLIT_E1] = views.split_LE1[layer].data_ptr()

    def _fill_scratch(self, words_W: Int64Array, lane: int) -> None:
        for index, word in enumerate(_COUNTS):
            words_W[word] = self._counts_MCE[lane, index].ctypes.data
        words_W[kernels.STATE_E] = self._states_ME[lane].ctypes.data
        words_W[kernels.LENGTH_P] = self._lengths_MP[lane].ctypes.data
