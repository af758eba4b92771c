"""The demo's result as a table, a picture and a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from isotherm.demo.result import DemoResult, step_imbalance
from isotherm.observe.picture import RunPicture, draw_run


def write_files(result: DemoResult, folder: Path) -> tuple[Path, ...]:
    """Writes ``result.json`` and ``demo.png`` into ``folder``; what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    data, picture = folder / "result.json", folder / "demo.png"
    data.write_text(json.dumps(result.as_dict(), indent=1))
    draw_run(_picture(result), picture)
    return data, picture


def _picture(result: DemoResult) -> RunPicture:
    shift = result.shift if result.shift is not None else len(result.load_NGL)
    before = [w for w in result.windows if w.end_step <= shift]
    after = [w for w in result.windows if w.start_step >= shift]
    heats = tuple(
        (
            f"{name} (steps {some[0].start_step} to {some[-1].end_step})",
            np.sum([w.heat_LE for w in some], axis=0),
        )
        for name, some in zip(result.kinds[:2], (before, after), strict=False)
        if some
    )
    load_NG = result.load_NGL.sum(axis=2)
    topology = result.topology
    first, last = result.phases[0].imbalance, result.phases[-1].imbalance
    return RunPicture(
        heats=heats,
        load_NG=load_NG / np.maximum(load_NG.mean(axis=1, keepdims=True), 1e-9),
        imbalance_N=step_imbalance(result.load_NGL),
        off_imbalance_N=step_imbalance(result.off_load_NGL),
        shifts=() if result.shift is None else (result.shift,),
        publications=result.publications,
        layer_ids=result.windows[0].layer_ids if result.windows else (),
        title=(
            f"{topology.ranks} ranks x {topology.slots_per_rank} slots: imbalance {first:.2f} before "
            f"balancing, {last:.2f} at the end"
        ),
    )


def print_result(result: DemoResult, files: tuple[Path, ...], console: Console) -> None:
    """The tables, and the verdict in words."""
    console.print(_phase_table(result))
    console.print(_work_table(result))
    for decision in result.decisions:
        if decision.plan is not None:
            console.print(f"  step {decision.step:>4}: {decision.reason}", highlight=False)
    if result.served is not None:
        console.print(f"imbalance of the last window: {result.served}", highlight=False)
    _print_verdict(result, console)
    for path in files:
        console.print(f"written: {path}", highlight=False)


def _phase_table(result: DemoResult) -> Table:
    table = Table(
        title="What balancing did",
        caption=(
            "imbalance: hottest rank / mean, per layer and step. Step time: what a machine with one "
            "device per rank would see, from CPU time per token. Ranks share cores here, so wall time "
            "cannot show it."
        ),
        caption_justify="left",
    )
    table.add_column("when")
    for name in ("steps", "imbalance", "step time, ms", "hottest rank, CPU ms"):
        table.add_column(name, justify="right")
    for phase in result.phases:
        table.add_row(
            phase.name,
            f"{phase.first_step} to {phase.first_step + phase.steps}",
            f"{phase.imbalance:.3f}",
            f"{phase.step_ms:.1f}",
            f"{phase.hottest_expert_ms:.1f}",
        )
    return table


def _work_table(result: DemoResult) -> Table:
    table = Table(title="What it took", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    steps = len(result.load_NGL)
    rows = {
        "steps, tokens": f"{steps:,}, {result.tokens:,}",
        "windows of heat": f"{len(result.windows)}",
        "plans carried out": f"{result.plans}",
        "experts moved": f"{result.moves}",
        "bytes moved": f"{result.moved_bytes:,}",
        "main-thread CPU time in Isotherm per step, slowest rank": (
            f"{result.isotherm_ms:.2f} ms median, {result.isotherm_ms_p99:.2f} ms p99"
        ),
        "times the forward pass waited for Isotherm": f"{result.waits}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _print_verdict(result: DemoResult, console: Console) -> None:
    ranks, steps = result.topology.ranks, len(result.load_NGL)
    if result.wrong_logits:
        step, rank = result.wrong_logits[0]
        console.print(
            f"[bold red]WRONG[/]: logits differ from balancing off in {len(result.wrong_logits)} of "
            f"{ranks * steps} batches, first at step {step} on rank {rank}"
        )
    else:
        console.print(
            f"[bold green]equal[/]: all logits of {ranks * steps} batches, bit for bit, with balancing "
            "on and off"
        )
    stock = result.stock
    word = "[bold red]WRONG[/]" if stock.beyond else "[bold green]equal[/]"
    console.print(
        f"{word}: greedy tokens of stock Transformers at {stock.tokens:,} positions; "
        f"{stock.different} differ within the tolerance of a tie, {stock.beyond} beyond"
    )
