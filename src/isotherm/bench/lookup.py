"""Mapping and counting on the engine's thread, beside torch's own look-up of the same ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from isotherm.balancer import Balancer
from isotherm.bench.clocks import quiet
from isotherm.bench.echo import EchoLink
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.sglang_recorder import find_recorder
from isotherm.bench.traffic import EP32, SHAPE, TOKENS, Traffic
from isotherm.config import Config
from isotherm.heat import HeatCollector
from isotherm.heat.totals import Totals, TotalsLayout
from isotherm.placement import Plan
from isotherm.planner import plan
from isotherm.router import Router, RoutingTables
from isotherm.streams import backend_for

LOOKUP = "torch.take"
WHOLE = "Balancer.route"
RECORDER = "sglang"
_POOL_BYTES = 48 * 2**20
_LAYERS = SHAPE.layers

Call = Callable[[int, torch.Tensor], object]
"""One layer of one step: its index and its ids."""


@dataclass(frozen=True)
class _Contenders:
    """The calls that are compared, and what must be told of a batch before."""

    calls: dict[str, Call]
    begin_step: Callable[[int], None]
    recorder_note: str


def measure_lookup(*, quick: bool) -> Section:
    """CPU time of the main thread, per layer, at each size of batch."""
    traffic = Traffic()
    figures: list[Figure] = []
    targets: list[Target] = []
    with _contenders(traffic) as contenders, quiet():
        for tokens in TOKENS:
            samples = _sample(contenders, traffic, tokens, repetitions=3 if quick else 120)
            figures += _figures(tokens, samples)
            targets += _targets(tokens, samples)
    return Section(
        "Map and count, CPU time of the main thread per layer",
        _note(contenders),
        tuple(figures),
        tuple(targets),
    )


def _note(contenders: _Contenders) -> str:
    return (
        "Median (p10 to p90) of repetitions in which all take turns in random order, each with the ids of up "
        "to 58 layers; ids differ from one repetition to the next, int64, experts exp(N(0, 0.6)), a quarter "
        "decode tokens. EP32 with 32 redundant slots. The cost of an empty loop is taken off. Router.route "
        "maps and counts, Balancer.route is that as the engine calls it, count_ids counts alone. "
        f"{contenders.recorder_note}"
    )


@contextmanager
def _contenders(traffic: Traffic) -> Iterator[_Contenders]:
    planned = plan(traffic.heat_LE, EP32)
    balancer = Balancer(
        SHAPE,
        EP32,
        group=EchoLink(EP32.ranks),
        weights=None,
        placement=planned.placement,
        config=Config(mode="count"),
    )
    collector = HeatCollector(SHAPE, EP32, None, source="ids")
    route, decode_tokens = _router_call(planned)
    recorder, note = find_recorder(SHAPE.layers, EP32.slots)
    tables_LE = torch.arange(SHAPE.experts).repeat(_LAYERS, 1)
    tables = list(tables_LE.unbind())
    calls: dict[str, Call] = {
        "an empty loop": lambda layer, ids: None,
        LOOKUP: lambda layer, ids: torch.take(tables[layer], ids),
        "table[ids]": lambda layer, ids: tables[layer][ids],
        "index_select": lambda layer, ids: tables[layer].index_select(0, ids.view(-1)),
        "Router.route": route,
        WHOLE: balancer.route,
        "count_ids": collector.count_ids,
    }
    if recorder is not None:
        calls[RECORDER] = recorder

    def begin_step(tokens: int) -> None:
        decode_tokens[:] = [tokens, tokens // 4]
        balancer.begin_step(tokens, num_decode_tokens=tokens // 4)

    try:
        yield _Contenders(calls, begin_step, note)
    finally:
        balancer.close()
        collector.close()


def _router_call(planned: Plan) -> tuple[Call, list[int]]:
    """A router with the planned shares, called as the balancer calls it; and its numbers of tokens and of
    decode tokens, to be set."""
    backend = backend_for("cpu")
    totals = Totals(TotalsLayout(SHAPE, EP32.slots), 1, backend.device)
    router = Router(
        RoutingTables.build(planned.placement.slot_to_expert, planned.shares, SHAPE.experts),
        rank=0,
        backend=backend,
        heat_MKLE=totals.heat_MKLE,
        received_MLP=totals.slots_MLP,
    )
    numbers = [0, 0]

    def route(layer: int, ids: torch.Tensor) -> torch.Tensor:
        return router.route(
            layer, ids, step=1, num_tokens=numbers[0], num_decode=numbers[1], first_token=0, micro_batch=0
        )

    return route, numbers


def _sample(
    contenders: _Contenders, traffic: Traffic, tokens: int, repetitions: int
) -> dict[str, np.ndarray]:
    """Nanoseconds per layer of each call, one for each repetition, without the empty loop's."""
    layers = _LAYERS if tokens <= 1024 else 8
    fits = max(1, _POOL_BYTES // (tokens * SHAPE.top_k * 8 * _LAYERS))
    pool = traffic.batches(tokens, _LAYERS * min(fits, repetitions))
    work = [(index % _LAYERS, ids) for index, ids in enumerate(pool)]
    contenders.begin_step(tokens)
    samples: dict[str, list[float]] = {name: [] for name in contenders.calls}
    order = np.random.default_rng(tokens)
    names = list(contenders.calls)
    for repetition in range(-1, repetitions):  # the first warms up
        first = repetition * layers % (len(work) - layers + 1)
        batch = work[first : first + layers]
        for index in order.permutation(len(names)):
            nanoseconds = _cpu_ns(contenders.calls[names[index]], batch)
            if repetition >= 0:
                samples[names[index]].append(nanoseconds)
    empty = float(np.median(samples.pop("an empty loop")))
    return {name: np.array(nanoseconds) - empty for name, nanoseconds in samples.items()}


def _cpu_ns(call: Call, batch: Sequence[tuple[int, torch.Tensor]]) -> float:
    begun = time.thread_time_ns()
    for layer, ids in batch:
        call(layer, ids)
    return (time.thread_time_ns() - begun) / len(batch)


def _figures(tokens: int, samples: dict[str, np.ndarray]) -> list[Figure]:
    row = _tokens(tokens)
    return [Figure.of(row, name, "µs", (values / 1e3).tolist()) for name, values in samples.items()]


def _tokens(tokens: int) -> str:
    return "1 token" if tokens == 1 else f"{tokens:,} tokens"


def _targets(tokens: int, samples: dict[str, np.ndarray]) -> list[Target]:
    """Medians of the ratios within a repetition, in which the machine was equally busy for both."""

    def ratio(name: str, other: str) -> float:
        return float(np.median(samples[name] / samples[other]))

    limit = 2.0 if tokens == 1 else 1.0
    targets = [
        Target(f"{name} / {LOOKUP} at {_tokens(tokens)}", ratio(name, LOOKUP), limit)
        for name in ("Router.route", WHOLE)
    ]
    if RECORDER in samples and tokens == 1024:
        targets.append(Target(f"{WHOLE} / sglang recorder at 1,024 tokens", ratio(WHOLE, RECORDER), 1 / 3))
    return targets
