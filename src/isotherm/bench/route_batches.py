"""Batches drawn from heat: which experts each token of each rank chose, none of them twice."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array

_TOGETHER = 32
"""Tokens that are drawn through one order of the experts."""


def draw_ids(heat_E: FloatArray, top_k: int, tokens: int, rng: np.random.Generator) -> Int64Array:
    """Int64 [tokens, top_k]: each token chooses ``top_k`` experts, as often as their heat says.

    Tokens are independent, and an expert's count is binomial. Systematic sampling (Madow 1949): the experts
    are laid end to end, as long as each is likely, and read off at ``top_k`` points one apart from a random
    start, in an order that is drawn anew for every 32 tokens, so that no two experts keep company.
    """
    chunks = -(-tokens // _TOGETHER)
    order_CE = rng.permuted(np.tile(np.arange(len(heat_E)), (chunks, 1)), axis=1)
    edge_CE = np.cumsum(_chances(heat_E, top_k)[order_CE], axis=1)
    edge_CE[:, -1] = top_k
    chunk_T1 = np.arange(tokens)[:, None] // _TOGETHER
    points_TK = rng.random((tokens, 1)) + np.arange(top_k)
    edges = (edge_CE + top_k * np.arange(chunks)[:, None]).ravel()
    found_TK = np.searchsorted(edges, points_TK + top_k * chunk_T1, side="right")
    # Rounding may carry the last point of a chunk over its end.
    ids_TK: Int64Array = order_CE.ravel()[np.minimum(found_TK, (chunk_T1 + 1) * len(heat_E) - 1)]
    return ids_TK


def _chances(heat_E: FloatArray, top_k: int) -> FloatArray:
    """How likely a token is to choose each expert: by heat, and at most 1, the rest by heat again."""
    chance_E: FloatArray = np.minimum(top_k * heat_E / heat_E.sum(), 1.0)
    while (lacking := top_k - chance_E.sum()) > 1e-9:
        open_E = np.where(chance_E < 1, heat_E, 0.0)
        chance_E = np.minimum(chance_E + lacking * open_E / open_E.sum(), 1.0)
    return chance_E
