"""DeepSeek-V3's shape, and ids as skewed as its own: drawn beforehand, so that no measurement draws any."""

from __future__ import annotations

import numpy as np
import torch

from isotherm.arrays import FloatArray, Int64Array
from isotherm.topology import MoEShape, Topology

SHAPE = MoEShape(layers=58, experts=256, top_k=8)
EP32 = Topology.for_model(experts=256, redundant=32, ranks=32)
TOKENS = (1, 128, 1024, 8192)
"""Tokens of a batch: one sequence, decode, a chunk of prefill, a large one."""

_SIGMA = 0.6  # of the logarithm of an expert's heat, as in DeepSeek-V3
_POOL_TOKENS = 16384


class Traffic:
    """Choices of tokens. Experts are as hot as exp(N(0, 0.6)), others in each layer.

    Tokens choose without replacement, by the Gumbel top-k trick (Kool et al. 2019).
    """

    def __init__(self, seed: int = 0, shape: MoEShape = SHAPE) -> None:
        self._rng = np.random.default_rng(seed)
        self.shape = shape
        logits_E = self._rng.normal(0, _SIGMA, shape.experts)
        self._label_LE = self._rng.permuted(
            np.tile(np.arange(shape.experts, dtype=np.int64), (shape.layers, 1)), axis=1
        )
        noisy_TE = logits_E + self._rng.gumbel(size=(_POOL_TOKENS, shape.experts))
        self._pool_TK = np.argpartition(noisy_TE, -shape.top_k, axis=1)[:, -shape.top_k :]
        self._heat_E = np.exp(logits_E)

    @property
    def heat_LE(self) -> FloatArray:
        """How hot each expert is meant to be, in any unit."""
        heat_LE = np.empty(self._label_LE.shape)
        np.put_along_axis(heat_LE, self._label_LE, np.tile(self._heat_E, (len(heat_LE), 1)), axis=1)
        return heat_LE

    def batches(self, tokens: int, count: int) -> list[torch.Tensor]:
        """``count`` different batches, int64 [tokens, top_k]; batch ``b`` is one of layer ``b % layers``."""
        ids_BTK = np.empty((count, tokens, self.shape.top_k), np.int64)
        for batch, ids_TK in enumerate(ids_BTK):
            rows_T = self._rng.integers(0, _POOL_TOKENS, tokens)
            label_E: Int64Array = self._label_LE[batch % self.shape.layers]
            ids_TK[:] = label_E[self._pool_TK[rows_T]]
        return list(torch.from_numpy(ids_BTK).unbind())
