"""`isotherm simulate`: a trace served again, as the balancer would have served it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from isotherm.bench.show import wide_console
from isotherm.cli.file_options import as_text, print_json, tell_notes, tracked
from isotherm.cli.pictures import check_picture, write_picture
from isotherm.cli.replay_options import ReplayOptions, chosen_windows, read_replayed, too_short
from isotherm.config import Config, Split

if TYPE_CHECKING:
    from isotherm.placement import Placement
    from isotherm.replay import ReplayReport
    from isotherm.topology import Topology
    from isotherm.traces import HeatTrace

_SHOWN_ROWS = 16
_MIB = 2**20


@dataclass(frozen=True)
class ReplayedConfig(Config):
    """The balancer's own settings, but for those that other options say or that a replay has no use for."""

    mode: Literal["shares", "full"] = "full"
    """shares: weights stay where they are. full: they move too."""
    split: tyro.conf.Suppress[Split] = Config.split
    window_steps: tyro.conf.Suppress[int] = Config.window_steps
    slices: tyro.conf.Suppress[int] = Config.slices
    step_ms: tyro.conf.Suppress[float] = Config.step_ms
    expert_share: tyro.conf.Suppress[float] = Config.expert_share
    link_bytes_per_second: tyro.conf.Suppress[float] = Config.link_bytes_per_second
    move_bytes_per_step: tyro.conf.Suppress[int] = Config.move_bytes_per_step
    heartbeat_seconds: tyro.conf.Suppress[float] = Config.heartbeat_seconds
    check_moves: tyro.conf.Suppress[bool] = Config.check_moves


@dataclass(frozen=True)
class SimulateOptions(ReplayOptions):
    """Replays a trace: what the balancer would have decided after each window, and what that had brought.

    The balancer's own mind decides, in virtual time: nothing is served. Prints imbalance with and without
    balancing, weights moved, and the score of a public competition, where DeepSeek's balancer has 100.

    Examples:
        isotherm simulate decode.heat --ranks 32 --nodes 4 --redundant 32
        isotherm simulate decode.heat --ranks 32 --redundant 32 --step-ms 50 --expert-share 0.4 --budget 128
        isotherm simulate requests.npz --ranks 8 --redundant 8 --batch 64 --window 64 --plot run.png
    """

    config: Annotated[ReplayedConfig, tyro.conf.arg(name=""), tyro.conf.FlagCreatePairsOff] = field(
        default_factory=ReplayedConfig
    )
    budget: float = Config.move_bytes_per_step / _MIB
    """MiB of weights that may arrive per step, over all ranks."""
    delay_steps: int = 4
    """Steps from the end of a window until what it decided is in force: gathering and planning take time."""
    current: Path | None = None
    """A placement file: what the slots hold at first. Where it is left out, slot p holds expert p % E."""
    plot: Path | None = None
    """Draw imbalance over time: a .png, or an .html that holds picture and tables."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the report as JSON on stdout."""


def run_simulate(options: SimulateOptions) -> int:
    """Replays the file; the exit code 0.

    Raises:
        ValueError: the file is not what it should be, has no axis of time, or an option does not fit.
        PlanRefusedError: the policy's answer breaks an invariant.
        MissingExtraError: a picture was asked for, and matplotlib is not installed.
    """
    from isotherm.replay import replay_trace

    check_picture(options.plot)
    trace = read_replayed(options)
    if len(trace) == 1:
        raise ValueError(
            f"{options.file}: holds one matrix and no axis of time, so there is nothing to replay: `isotherm "
            "compare` and `isotherm plan` take it, and `isotherm synth --like` makes a trace from it"
        )
    cluster = options.cluster(trace.header)
    if next(iter(chosen_windows(trace, trace, options)), None) is None:
        raise too_short(trace, options)
    report = replay_trace(
        chosen_windows(trace, tracked(trace, "replaying"), options),
        cluster,
        _config(options),
        placement=_placement(options, trace, cluster.topology),
        delay_steps=options.delay_steps,
    )
    if options.json:
        print_json(report.as_dict())
    else:
        _print_report(report, wide_console())
    if options.plot is not None:
        from isotherm.cli.replay_pictures import draw_replay

        title = f"{options.file.name}: {cluster.topology.ranks} ranks, policy {options.config.policy}"
        text = as_text(lambda console: _print_report(report, console))
        write_picture(draw_replay(title, report), options.plot, title=title, text=text)
    return 0


def _config(options: SimulateOptions) -> Config:
    if not 0 < options.budget < math.inf:
        raise ValueError(f"--budget {options.budget} must be a number above 0, in MiB per step")
    if options.delay_steps < 0:
        raise ValueError(f"--delay-steps {options.delay_steps} is negative: give 0 or more")
    asked = options.config.as_dict() | {"move_bytes_per_step": max(1, int(options.budget * _MIB))}
    return Config(**asked)


def _placement(options: SimulateOptions, trace: HeatTrace, topology: Topology) -> Placement | None:
    if options.current is None:
        return None
    from isotherm.traces import read_placement

    file = read_placement(options.current, moe_layers=trace.layer_ids)
    tell_notes(file.notes)
    return file.placement


def _print_report(report: ReplayReport, console: Console) -> None:
    for table in (_totals(report), _rows(report)):
        console.print(table)


def _totals(report: ReplayReport) -> Table:
    steps = f"{len(report.windows)} windows, {report.steps:,} steps"
    table = Table(title=f"{steps}, policy {report.policy}", title_justify="left", show_header=False)
    rows = {
        "imbalance without balancing": f"{report.unbalanced:.3f}",
        "imbalance with balancing": f"{report.imbalance:.3f}",
        "weights moved": f"{report.moves:,} experts, {report.moved_bytes / 2**30:,.2f} GiB",
        "decisions": ", ".join(f"{report.count(name)} {name}" for name in ("moves", "shares", "nothing")),
        "time of links": f"{report.moving_seconds:.2f} s, while the busiest rank received",
    }
    if report.saved_seconds is not None:
        net = report.saved_seconds - report.moving_seconds
        rows["time of steps saved"] = (
            f"{report.saved_seconds:.2f} s; {net:.2f} s if steps waited for every byte"
        )
    rows["competition's score"] = _score(report)
    for row in rows.items():
        table.add_row(*row)
    return table


def _score(report: ReplayReport) -> str:
    if report.yardstick is None:
        return "none: fewer than 1,024 steps, in which DeepSeek's balancer makes no plan"
    mine, other = report.time, report.yardstick
    return (
        f"{report.score:.1f} (DeepSeek's balancer: 100, with mean PAR {other.par:.3f} and "
        f"{other.changed_slots:,} slots changed; here {mine.par:.3f} and {mine.changed_slots:,})"
    )


def _rows(report: ReplayReport) -> Table:
    """The windows, or as many as fit, evenly spread."""
    count = len(report.windows)
    title = "Imbalance of each window: hottest rank over the mean"
    if count > _SHOWN_ROWS:
        title = f"Imbalance of {_SHOWN_ROWS} of {count} windows: hottest rank over the mean"
    table = Table(title=title, title_justify="left")
    for name in ("steps", "without", "with", "moves"):
        table.add_column(name, justify="right")
    table.add_column("decided after it")
    shown = sorted({round(i * (count - 1) / (_SHOWN_ROWS - 1)) for i in range(_SHOWN_ROWS)})
    for row in (report.windows[i] for i in (shown if count > _SHOWN_ROWS else range(count))):
        table.add_row(
            f"{row.start_step:,} to {row.end_step:,}",
            f"{row.unbalanced:.3f}",
            f"{row.imbalance:.3f}",
            str(row.moves),
            row.reason,
        )
    return table
