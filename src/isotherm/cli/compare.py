"""`isotherm compare`: would balancing pay here, with which policy, redundancy and window."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from isotherm.bench.show import wide_console
from isotherm.cli.file_options import as_text, print_json, tell_notes, tracked
from isotherm.cli.pictures import check_picture, write_picture
from isotherm.cli.replay_options import (
    ReplayOptions,
    chosen_windows,
    read_replayed,
    steps_asked,
    too_short,
)
from isotherm.planner.served.dispatch import Engine
from isotherm.replay.lengths import best_length

if TYPE_CHECKING:
    from isotherm.replay.comparison import Comparison
    from isotherm.traces import HeatTrace
    from isotherm.window import HeatWindow

LARGEST_WINDOWS = 48


@dataclass(frozen=True)
class CompareOptions(ReplayOptions):
    """Compares all policies on a file of heat, and says whether balancing would pay.

    Each policy plans on one window and serves the next with it. The answer is yes if the work of the hottest
    ranks then falls by 5 % or more, net of the time that moving weights takes, in 80 % or more of at least
    two windows. One matrix is not enough data, since it shows no drift.

    Examples:
        isotherm compare decode.heat --ranks 32 --nodes 4 --redundant 32 --step-ms 50 --expert-share 0.4
        isotherm compare dump.pt --ranks 16 --redundant 16 --engine sglang
        isotherm compare requests.npz --ranks 8 --redundant 8 --batch 64 --plot policies.png --check
    """

    engine: Engine = "isotherm"
    """Who serves: decides how the tokens of an expert are split over its replicas."""
    policy: str = "incremental"
    """The policy that the answer is about."""
    max_windows: int = LARGEST_WINDOWS
    """Of a longer trace, the last so many windows are compared."""
    plot: Path | None = None
    """Draw slots moved against balancedness: a .png, or an .html that holds picture and tables."""
    check: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Exit with 1 unless the answer is yes."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the report as JSON on stdout."""


def run_compare(options: CompareOptions) -> int:
    """Compares; the exit code 0, or 1 where ``check`` was asked for and balancing would not pay.

    Raises:
        ValueError: the file is not what it should be, or an option does not fit.
        PlanRefusedError: the policy in question cannot plan for this cluster.
        MissingExtraError: a picture was asked for, and matplotlib is not installed.
    """
    from isotherm.replay.comparison import compare_policies

    check_picture(options.plot)
    trace = read_replayed(options)
    cluster = options.cluster(trace.header)
    found = compare_policies(
        _windows(trace, options), cluster, engine=options.engine, policy=options.policy, tracked=tracked
    )
    if options.json:
        print_json(found.as_dict())
    else:
        _print_report(found, options, wide_console())
    if options.plot is not None:
        from isotherm.cli.replay_pictures import draw_policies

        redundant = cluster.topology.slots - trace.header.experts
        title = f"{options.file.name}: {cluster.topology.ranks} ranks, {redundant} redundant slots a layer"
        text = as_text(lambda console: _print_report(found, options, console))
        write_picture(draw_policies(title, found), options.plot, title=title, text=text)
    return 1 if options.check and found.verdict.answer != "yes" else 0


def _windows(trace: HeatTrace, options: CompareOptions) -> list[HeatWindow]:
    """The last windows of the trace, in memory."""
    if options.max_windows < 1:
        raise ValueError(f"--max-windows {options.max_windows} is below 1: give a number of windows")
    steps, count = steps_asked(trace, options), options.max_windows
    if steps is not None:
        count = 1 + -(-count * steps // trace[-1].steps)
    windows = list(chosen_windows(trace, trace[-count:], options))[-options.max_windows :]
    if not windows:
        raise too_short(trace, options)
    if windows[0].start_step > trace[0].start_step:
        tell_notes((f"compared from step {windows[0].start_step:,} on: --max-windows {options.max_windows}",))
    return windows


def _print_report(found: Comparison, options: CompareOptions, console: Console) -> None:
    console.print(_policies_table(found))
    if found.lengths:
        console.print(_lengths_table(found))
    console.print(_redundancy_table(found))
    for line in _answers(found):
        console.print(line, markup=False, soft_wrap=True)


def _policies_table(found: Comparison) -> Table:
    how = "one matrix, served on the same" if found.windows == 1 else "each window, served on the next"
    table = Table(title=f"Planned on {how}, by {found.engine}", title_justify="left")
    table.add_column("policy")
    for name in ("balancedness p50", "worst", "slots moved a plan", "links busy", "time to plan"):
        table.add_column(name, justify="right")
    table.add_column("work of the hottest ranks", justify="right")
    unbalanced = [1 / window.unbalanced for window in found.chosen.windows]
    table.add_row("(no plan)", f"{np.median(unbalanced):.3f}", f"{min(unbalanced):.3f}", "0", "", "", "")
    for row in found.rows:
        if row.refused is not None:
            table.add_row(row.policy, "cannot plan here")
            continue
        table.add_row(
            row.policy,
            f"{row.balancedness:.3f}",
            f"{row.worst_balancedness:.3f}",
            f"{row.moved_part:.1%}",
            f"{row.moving_seconds:.2f} s",
            f"{1e3 * row.plan_seconds:.1f} ms",
            f"{-row.mean_fall(found.step):+z.1%}",
        )
    return table


def _lengths_table(found: Comparison) -> Table:
    table = Table(title=f"Windows of other lengths, policy {found.policy}", title_justify="left")
    for name in (
        "steps", "windows", "tokens elsewhere than forecast", "balancedness p50", "worst",
        "moves per 1,000 steps", "work of the hottest ranks",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for row in found.lengths:
        table.add_row(
            str(row.steps),
            str(row.windows),
            f"{row.forecast_error:.1%}",
            f"{row.balancedness:.3f}",
            f"{row.worst_balancedness:.3f}",
            f"{row.moves_per_1000_steps:,.1f}",
            f"{-row.fall:+z.1%}",
        )
    return table


def _redundancy_table(found: Comparison) -> Table:
    table = Table(
        title="Redundant slots, planned for all windows as if known beforehand", title_justify="left"
    )
    for name in ("redundant", "slots a rank", "imbalance", "worst layer", "layers within 1.03", "GiB a rank"):
        table.add_column(name, justify="right")
    for row in found.advice.rows:
        table.add_row(
            str(row.redundant),
            str(row.slots_per_rank),
            f"{row.imbalance.overall:.3f}",
            f"{row.imbalance.worst:.3f}",
            str(row.layers_within),
            f"{row.bytes_per_rank / 2**30:.2f}",
        )
    return table


def _answers(found: Comparison) -> list[str]:
    """The questions that one comes with, answered in words."""
    verdict = found.verdict
    lines = [f"Would balancing pay here? {verdict.answer.capitalize()}: {verdict.reason}."]
    part = f"{found.step_fall:.1%}"
    if found.step is None:
        lines.append(
            f"Step time: at most {part} shorter. This is an upper bound, as if a step were all work of the "
            "hottest ranks and moves cost nothing: give --step-ms and --expert-share for an estimate."
        )
    else:
        lines.append(f"Step time: {part} shorter, moves not counted.")
    best = best_length(found.lengths)
    if best is not None:
        lines.append(f"Which window? {best.steps} steps, of those tried.")
    advice = found.advice
    needing = f"{(advice.needed_L != advice.rows[0].redundant).sum()} of {len(advice.needed_L)} layers"
    lines.append(f"How many redundant slots? {advice.reason}. {needing} need any for that.")
    return lines
