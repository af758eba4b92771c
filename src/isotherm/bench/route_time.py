"""What each way to split takes of the engine's thread, beside torch's own look-up of the same ids."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from isotherm.arrays import FloatArray
from isotherm.bench.clocks import quiet
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.traffic import EP32, SHAPE, Traffic
from isotherm.heat.totals import Totals, TotalsLayout
from isotherm.placement import Plan, rank_loads
from isotherm.planner import plan
from isotherm.router import Router, RoutingTables, near_split
from isotherm.streams import backend_for

LOOKUP = "torch.take"
TOKENS = (128, 1024, 8192)
_RANK = 5

Call = Callable[[int, torch.Tensor, int], object]
"""One layer: its index, its ids, how many tokens."""

_NOTE = (
    "CPU time of the calling thread per layer, one thread. Median (p10 to p90) of repetitions in which "
    "all take turns in random order. int64 ids, experts exp(N(0, 0.6)), top 8; EP32 with 32 redundant "
    "slots. The router maps, chooses the replica and counts; '{lookup}' looks up alone. An empty loop's "
    "cost is taken off."
)


def measure_time(*, quick: bool) -> Section:
    """Per layer, at each size of batch."""
    traffic = Traffic()
    calls = _calls(traffic)
    figures: list[Figure] = []
    targets: list[Target] = []
    with quiet():
        for tokens in TOKENS:
            samples = _sample(calls, traffic, tokens, 3 if quick else 100)
            row = f"{tokens:,} tokens"
            figures += [Figure.of(row, name, "µs", (ns / 1e3).tolist()) for name, ns in samples.items()]
            ratio = float(np.median(samples["by shares"] / samples[LOOKUP]))
            targets.append(Target(f"map, choose and count / {LOOKUP} at {row}", ratio, 1.0))
    note = _NOTE.format(lookup=LOOKUP)
    return Section("Map, choose and count, per layer", note, tuple(figures), tuple(targets))


def _calls(traffic: Traffic) -> dict[str, Call]:
    made = plan(traffic.heat_LE, EP32)
    load_LG = rank_loads(traffic.heat_LE, made.placement, made.shares, EP32)
    others_LG = (EP32.ranks - 1) * load_LG / load_LG.sum(axis=1, keepdims=True)
    near_LP = near_split(made.placement.slot_to_expert, made.shares, EP32, _RANK)
    table_E = torch.arange(SHAPE.experts)
    return {
        "nothing": lambda layer, ids, tokens: None,
        LOOKUP: lambda layer, ids, tokens: torch.take(table_E, ids),
        "by shares": _router(made, made.shares, None),
        "near first": _router(made, near_LP, None),
        "batch levelled": _router(made, made.shares, others_LG),
    }


def _router(made: Plan, shares_LP: FloatArray, others_LG: FloatArray | None) -> Call:
    backend = backend_for("cpu")
    totals = Totals(TotalsLayout(SHAPE, EP32.slots), 1, backend.device)
    router = Router(
        RoutingTables.build(made.placement.slot_to_expert, shares_LP, SHAPE.experts, others_LG),
        rank=_RANK,
        backend=backend,
        heat_MKLE=totals.heat_MKLE,
        received_MLP=totals.slots_MLP,
    )
    return lambda layer, ids, tokens: router.route(layer, ids, step=1, num_tokens=tokens, num_decode=tokens)


def _sample(calls: dict[str, Call], traffic: Traffic, tokens: int, repetitions: int) -> dict[str, FloatArray]:
    """Nanoseconds per layer of each call, one for each repetition, without those of the empty one."""
    layers = SHAPE.layers if tokens <= 1024 else 8
    batches = traffic.batches(tokens, layers)
    order, names = np.random.default_rng(tokens), list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(-1, repetitions):  # the first warms up
        for index in order.permutation(len(names)):
            call, begun = calls[names[index]], time.thread_time_ns()
            for layer, ids in enumerate(batches):
                call(layer, ids, tokens)
            if repetition >= 0:
                samples[names[index]].append((time.thread_time_ns() - begun) / layers)
    empty = float(np.median(samples.pop("nothing")))
    return {name: np.array(each) - empty for name, each in samples.items()}
