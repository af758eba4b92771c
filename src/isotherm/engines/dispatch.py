"""Tokens go to the ranks of their experts and come back, and each row is computed bit-reproducibly.

A row's result on a CPU can depend on how many rows share its matrix product. Here every product has
the same number of rows, so a row's bits depend on the row and on the weights alone: not on the batch,
not on the rank or the slot that computes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

TILE_ROWS = 16
"""Rows of every expert product: measured equal at any position, in float32, float64 and bfloat16."""

ExpertFunction = Callable[[torch.Tensor, int], torch.Tensor]
"""Computes ``[tiles, TILE_ROWS, hidden]`` rows with the weights of a local slot."""


@dataclass(frozen=True)
class Dispatched:
    """What one layer received and what it cost.

    ``received_S`` are tokens per local slot; ``expert_seconds`` CPU time of this thread in the expert
    products.
    """

    output: torch.Tensor
    received_S: torch.Tensor
    expert_seconds: float


def dispatch_tokens(
    hidden_TH: torch.Tensor,
    slots_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    experts: ExpertFunction,
    *,
    ranks: int,
    slots_per_rank: int,
    group: dist.ProcessGroup,
) -> Dispatched:
    """Computes each (token, slot) pair on the slot's rank and adds up each token's weighted results.

    A collective: every rank of ``group`` calls it once per layer, with any number of tokens. Pairs with
    a negative slot are computed nowhere and add nothing. The results of a token are added in the order of
    its choices, in the wider of the dtypes of ``hidden_TH`` and ``weights_TK``.
    """
    tokens, top_k = slots_TK.shape
    flat = slots_TK.reshape(-1)
    order = torch.argsort(flat, stable=True)
    order = order[int((flat < 0).sum()) :]
    sent_GS = torch.bincount(flat[order], minlength=ranks * slots_per_rank).view(ranks, -1)
    received_GS = torch.empty_like(sent_GS)
    dist.all_to_all_single(received_GS, sent_GS, group=group)
    sent_G, received_G = sent_GS.sum(1).tolist(), received_GS.sum(1).tolist()

    arrived = hidden_TH.new_empty(sum(received_G), hidden_TH.shape[1])
    dist.all_to_all_single(arrived, hidden_TH[order // top_k], received_G, sent_G, group=group)
    begun = time.thread_time()
    computed = _compute(arrived, received_GS, experts)
    expert_seconds = time.thread_time() - begun
    returned = hidden_TH.new_empty(len(order), hidden_TH.shape[1])
    dist.all_to_all_single(returned, computed, sent_G, received_G, group=group)

    rows = hidden_TH.new_zeros(tokens * top_k, hidden_TH.shape[1])
    rows[order] = returned
    rows_TKH = rows.view(tokens, top_k, hidden_TH.shape[1])
    output = hidden_TH.new_zeros(
        hidden_TH.shape, dtype=torch.promote_types(hidden_TH.dtype, weights_TK.dtype)
    )
    for choice in range(top_k):
        output += rows_TKH[:, choice] * weights_TK[:, choice, None]
    return Dispatched(output.to(hidden_TH.dtype), received_GS.sum(0), expert_seconds)


def _compute(arrived: torch.Tensor, received_GS: torch.Tensor, experts: ExpertFunction) -> torch.Tensor:
    """Runs the rows, which arrive by source rank and then slot, through their slots in whole tiles."""
    received_S = received_GS.sum(0)
    padded_S = -(-received_S // TILE_ROWS) * TILE_ROWS
    # Where each (source, slot) block of rows goes: the slot's tiles, behind earlier sources.
    starts_GS = (padded_S.cumsum(0) - padded_S) + (received_GS.cumsum(0) - received_GS)
    counts = received_GS.reshape(-1)
    shift = starts_GS.reshape(-1) - (counts.cumsum(0) - counts)
    place = torch.arange(len(arrived), device=arrived.device)
    place += torch.repeat_interleave(shift, counts, output_size=len(arrived))
    tiles = arrived.new_zeros(int(padded_S.sum()), arrived.shape[1])
    tiles[place] = arrived
    first = 0
    for slot, rows in enumerate(padded_S.tolist()):
        if rows:
            block = tiles[first : first + rows].view(-1, TILE_ROWS, arrived.shape[1])
            tiles[first : first + rows] = experts(block, slot).reshape(rows, -1)
        first += rows
    return tiles[place]
