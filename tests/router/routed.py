"""Tables and ids made at random, a router with its own counts, and the oracle they are held against."""

import numpy as np
import torch

from isotherm.placement import Placement
from isotherm.router import Router, RoutingTables
from isotherm.router.layout import TablesLayout
from isotherm.router.rounding import MASK, RANK_STRIDE, rounding_base
from isotherm.streams import backend_for


def random_tables(rng, experts, slots, layers=2):
    """Contents with every expert placed, some slots empty or retired, and random shares."""
    rows = []
    for _ in range(layers):
        row = np.concatenate([np.arange(experts), rng.integers(-1, experts, slots - experts)])
        rows.append(rng.permutation(row))
    content_LP = np.array(rows, np.int32)
    shares_LP = np.where(content_LP >= 0, rng.random(content_LP.shape), 0.0)
    replicas_LE = Placement(content_LP, experts).replicas_LE
    redundant = np.take_along_axis(replicas_LE, np.maximum(content_LP, 0).astype(int), 1) > 1
    first_LP = np.zeros(content_LP.shape, bool)
    for layer in range(layers):
        first_LP[layer, np.unique(content_LP[layer], return_index=True)[1]] = True
    shares_LP[redundant & ~first_LP & (rng.random(content_LP.shape) < 0.4)] = 0.0
    shares_LP += 1e-6 * (content_LP >= 0) * first_LP
    totals = np.zeros((layers, experts))
    for layer in range(layers):
        live = content_LP[layer] >= 0
        np.add.at(totals[layer], content_LP[layer, live], shares_LP[layer, live])
    shares_LP /= np.take_along_axis(totals, np.maximum(content_LP, 0).astype(int), 1)
    shares_LP[content_LP < 0] = 0
    return content_LP, shares_LP, RoutingTables.build(content_LP, shares_LP, experts)


def random_ids(rng, tokens, experts, top_k, dtype=torch.int64):
    """Distinct experts for each token, skewed, a few replaced by -1 and by one that does not exist."""
    ids = np.argsort(rng.random((tokens, experts)) ** rng.uniform(0.2, 3, experts), axis=1)
    ids = ids[:, :top_k].copy()
    ids[rng.random(ids.shape) < 0.05] = -1
    ids[rng.random(ids.shape) < 0.02] = experts + int(rng.integers(3))
    return torch.from_numpy(ids).to(dtype)


def layer_tables(tables, layer):
    """One layer's tables as a router holds them on a device."""
    layout = TablesLayout.of(tables, on_host=False)
    block = torch.empty(layout.nbytes, dtype=torch.uint8)
    layout.fill(block, tables)
    return layout.views(block).layer(layer)


class Counted:
    """A router with its own counts, of which layer 1 is used. The totals are views with gaps, as the
    caller's are."""

    def __init__(self, tables, rank=0, micro_batches=1, backend=None):
        layers, slots = tables.slots.shape
        experts = tables.offsets.shape[1] - 1
        heat, received = 2 * layers * experts, layers * slots
        self.words = torch.zeros((micro_batches, heat + 3 + received), dtype=torch.int32)
        self.heat = self.words[:, :heat].unflatten(1, (2, layers, experts))
        self.received = self.words[:, heat + 3 :].unflatten(1, (layers, slots))
        self.tables, self.rank = tables, rank
        self.router = Router(
            tables,
            rank=rank,
            backend=backend or backend_for("cpu"),
            heat_MKLE=self.heat,
            received_MLP=self.received,
        )

    def route(self, ids, num_tokens=None, num_decode=0, step=3, first_token=0, micro_batch=0):
        num_tokens = len(ids) if num_tokens is None else num_tokens
        return self.router.route(
            1,
            ids,
            step=step,
            num_tokens=num_tokens,
            num_decode=num_decode,
            first_token=first_token,
            micro_batch=micro_batch,
        )


def oracle(tables, layer, ids, *, rank, step, first_token, num_tokens, num_decode, micro_batch=0):
    """Slots, heat per kind and received counts, by the definition: one pair at a time, in plain integers."""
    width, ids = tuple(ids.shape), ids.tolist()
    offsets, slots, ends = (array[layer].tolist() for array in tables.arrays)
    experts = len(offsets) - 1
    totals = [0] * experts
    for row in ids:
        for expert in row:
            if 0 <= expert < experts:
                totals[expert] += 1
    heat = np.zeros((2, experts), np.int32)
    received = np.zeros(len(slots), np.int32)
    base = rounding_base(layer, step, rank, micro_batch)
    seen, chosen = [0] * experts, []
    for token, row in enumerate(ids):
        chosen.append([])
        for expert in row:
            if not 0 <= expert < experts:
                chosen[-1].append(-1)
                continue
            offset = (base + expert * RANK_STRIDE) & MASK
            places = range(offsets[expert], offsets[expert + 1])
            limits = [(ends[place] * totals[expert] + offset) >> 32 for place in places]
            slot = slots[next(p for p, limit in zip(places, limits) if seen[expert] < limit)]
            seen[expert] += 1
            chosen[-1].append(slot)
            if first_token <= token < first_token + num_tokens:
                heat[int(token < first_token + num_decode), expert] += 1
                received[slot] += 1
    return np.array(chosen, np.int64).reshape(width), heat, received
