"""One rank of the demo: started by torch's launcher, or by torchrun."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from isotherm.control import GroupLink, check_peers, no_span
from isotherm.demo.engine import (
    StockCheck,
    StockComparison,
    demo_topology,
    load_model,
    quiet_transformers,
    run_pass,
)
from isotherm.demo.options import DemoOptions
from isotherm.demo.progress import DemoProgress
from isotherm.demo.report import print_result, write_files
from isotherm.demo.result import DemoResult, build_result
from isotherm.demo.text import load_corpus
from isotherm.demo.traffic import Traffic
from isotherm.observe.timeline import Timeline, write_chrome_trace

_NOT_COMPARED = ("out", "json", "timeline", "port", "ranks")


def run_rank(options: DemoOptions) -> int:
    """Runs this rank; the exit code, the same on every rank: 0, or 1 when an answer was wrong.

    Raises:
        ValueError: an option does not fit the ranks, the model or the text.
        PeerMismatchError: another rank was started with other options.
    """
    # Ranks sit in collectives that no Python signal handler can interrupt.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    quiet_transformers()
    begun = time.monotonic()
    dist.init_process_group("gloo")
    _check_options(options)
    code = _run(options, begun)
    dist.barrier()
    # Not after a failure: a thread of ours may still be inside a collective of these groups.
    dist.destroy_process_group()
    return code


def _run(options: DemoOptions, begun: float) -> int:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    nodes = ranks // int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    nodes = nodes if nodes and ranks % nodes == 0 else 1
    console = Console(stderr=True, quiet=rank != 0)
    traffic = Traffic(load_corpus(options.text or None), options)
    topology = demo_topology(load_model(options.model), ranks, options, nodes)
    console.print(
        f"{ranks} ranks x {topology.slots_per_rank} slots, {options.steps} steps of "
        f"{' then '.join(traffic.corpus.kinds)}",
        highlight=False,
    )
    timeline = Timeline(rank)
    per_step = ranks * options.sequences * options.length
    with DemoProgress(console, "balancing", options.steps, per_step) as watch:
        span = timeline.span if options.timeline else no_span
        on = run_pass(options, traffic, options.mode, nodes, watch=watch, span=span)
    stock = StockComparison(options.model, tuple({0, *traffic.shifts, options.steps - 1}))
    with DemoProgress(console, "the same with balancing off", options.steps, per_step) as watch:
        off = run_pass(options, traffic, "off", nodes, watch=watch, examine=stock.examine)
    gathered = _gather((on.rank, off.rank, stock.total, timeline.records))
    result: DemoResult | None = None
    if gathered is not None:
        on_ranks, off_ranks, stocks, spans = zip(*gathered, strict=True)
        result = build_result(
            topology,
            traffic.corpus.kinds,
            traffic.shifts,
            on,
            on_ranks,
            off_ranks,
            sum(stocks, StockCheck(0, 0, 0)),
            window=options.window,
            tokens=per_step * options.steps,
            seconds=time.monotonic() - begun,
        )
        if options.timeline:
            write_chrome_trace(options.timeline, [record for each in spans for record in each])
        _show(result, options)
    return _agree(0 if result is None or result.ok else 1)


def _show(result: DemoResult, options: DemoOptions) -> None:
    files: tuple[Path, ...] = write_files(result, options.out)
    if options.timeline:
        files += (options.timeline,)
    if options.json:
        print(json.dumps(result.as_dict()), flush=True)
        return
    print_result(result, files, Console())


def _check_options(options: DemoOptions) -> None:
    world = dist.get_world_size()
    if options.ranks not in (None, world):
        raise ValueError(f"--ranks {options.ranks} given, but torchrun started {world}: leave --ranks out")
    settings = {k: v for k, v in asdict(options).items() if k not in _NOT_COMPARED}
    group = dist.new_group(backend="gloo")
    check_peers(GroupLink(group), settings)
    dist.destroy_process_group(group)


def _gather(mine: Any) -> list[Any] | None:
    """The objects of all ranks, on rank 0; None elsewhere."""
    gathered: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, gathered)
    return gathered


def _agree(code: int) -> int:
    """Rank 0's code, on every rank."""
    word = torch.tensor([code])
    dist.broadcast(word, src=0)
    return int(word)
