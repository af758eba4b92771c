"""`isotherm inspect`: what a file holds, and how uneven it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isotherm.bench.show import wide_console
from isotherm.cli.file_options import InputFormat, as_text, parse_layers, print_json, tell_notes, tracked
from isotherm.cli.pictures import HeatSeries, check_picture, draw_heat, write_picture

if TYPE_CHECKING:
    from isotherm.traces import HeatTrace, PlacementFile
    from isotherm.traces.skew import HeatReport

_SHOWN_WINDOWS = 20


@dataclass(frozen=True)
class InspectOptions:
    """Shows how uneven the heat in a file is: per layer, from window to window, and between kinds of tokens.

    Reads heat files, dumps and statistics of SGLang, folders of TensorRT-LLM, arrays of numpy, and ids of
    experts per token. Of a file that holds a placement it shows slots and replicas.

    Examples:
        isotherm inspect sample --plot sample.png
        isotherm inspect expert_distribution_recorder_1.pt --json
        isotherm inspect heat.npy --moe-layers 3-60
    """

    file: Annotated[Path, tyro.conf.Positional]
    """The file or folder."""
    format: InputFormat | None = None
    """Whose file it is; found by what it holds where it is left out."""
    moe_layers: str | None = None
    """The model's numbers of the MoE layers, such as 3-60, where the file does not say."""
    top: int | None = None
    """Hottest experts whose part of all tokens is shown; 8, where it is left out."""
    rows_per_window: int = 256
    """Forward passes in a window, of files that have a row for each."""
    plot: Path | None = None
    """Draw the heat: a .png, or an .html that holds picture and tables."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the report as JSON on stdout."""


def run_inspect(options: InspectOptions) -> int:
    """Shows the file; the exit code 0.

    Raises:
        ValueError: the file is not what it should be, or the picture cannot be written.
        MissingExtraError: a picture is asked for and matplotlib is not installed.
    """
    from isotherm.traces import detect_format, read_heat, read_placement
    from isotherm.traces.detection import holds_placement_alone

    check_picture(options.plot)
    layers = parse_layers(options.moe_layers)
    found = options.format or detect_format(options.file)
    if holds_placement_alone(options.file, found):
        if options.plot is not None:
            raise ValueError(f"--plot: {options.file} holds a placement, and heat is what is drawn")
        file = read_placement(options.file, format=found, moe_layers=layers)
        tell_notes(file.notes)
        _show_placement(file, options)
        return 0
    trace = read_heat(options.file, format=found, moe_layers=layers, rows_per_window=options.rows_per_window)
    tell_notes(trace.notes)
    _show_heat(trace, found, options)
    return 0


def _show_placement(file: PlacementFile, options: InspectOptions) -> None:
    placement = file.placement
    replicas_LE = placement.replicas_LE
    values = {
        "layers": placement.layers,
        "layer_ids": list(file.layer_ids),
        "experts": placement.experts,
        "slots": placement.slots,
        "ranks": file.ranks,
        "most_replicas": int(replicas_LE.max()),
        "replicated_experts": int((replicas_LE > 1).sum()),
    }
    if options.json:
        print_json({"placement": values, "notes": file.notes})
        return
    table = Table(title="Placement", title_justify="left", show_header=False)
    for name, value in values.items():
        shown = "not known" if value is None else value
        if isinstance(shown, list):
            shown = f"{shown[0]} to {shown[-1]}"
        table.add_row(name.replace("_", " "), str(shown))
    wide_console().print(table)


def _show_heat(trace: HeatTrace, found: str, options: InspectOptions) -> None:
    from isotherm.traces.skew import measure_skew

    windows, series = tracked(trace, "reading"), HeatSeries()
    if options.plot is not None:
        windows = series.noting(windows)
    report = measure_skew(trace.header, windows, top=options.top)
    names = ", ".join(name for name in (trace.header.model, trace.header.engine) if name)
    title = (
        f"{options.file.name}: {found}{f', {names}' if names else ''}; {report.windows} windows, steps "
        f"{report.first_step} to {report.last_step}; {len(report.layers)} layers of {report.experts} experts"
    )
    recorded = _recorded(trace)
    if recorded is not None:
        title += f"; recorded {recorded[0]} to {recorded[1]}"
    if options.json:
        header = trace.header.as_dict()
        print_json({"heat": report.as_dict(), "header": header, "recorded": recorded, "notes": trace.notes})
    else:
        _print_report(report, title, wide_console())
    if options.plot is not None:
        figure = draw_heat(title, series, trace.header.kinds, trace.layer_ids)
        text = as_text(lambda console: _print_report(report, title, console))
        write_picture(figure, options.plot, title=title, text=text)


def _recorded(trace: HeatTrace) -> tuple[str, str] | None:
    """When the first and the last window ended, in UTC, where the file says it of any."""
    known = [time for time in trace.times if time is not None]
    if not known:
        return None
    first, last = (datetime.fromtimestamp(time, UTC) for time in (known[0], known[-1]))
    return f"{first:%Y-%m-%dT%H:%M:%SZ}", f"{last:%Y-%m-%dT%H:%M:%SZ}"


def _print_report(report: HeatReport, title: str, console: Console) -> None:
    console.print(title, markup=False)
    for table in (_layers_table(report), _drift_table(report), _kinds_table(report)):
        if table is not None:
            console.print(table)
    if report.rank_imbalance is not None:
        shown = ", ".join(
            f"{name.replace('_', ' ')} {value:.3f}" if isinstance(value, float) else f"in layer {value}"
            for name, value in asdict(report.rank_imbalance).items()
        )
        console.print(f"imbalance of the ranks as they were: {shown}", markup=False)


def _layers_table(report: HeatReport) -> Table:
    table = Table(title="Skew per layer", title_justify="left")
    for name in (
        "layer",
        "tokens x picks",
        "Gini",
        "max / mean",
        f"hottest {report.top} of {report.experts}",
    ):
        table.add_column(name, justify="right")
    for layer in report.layers:
        table.add_row(
            str(layer.layer),
            f"{layer.heat:,}",
            f"{layer.gini:.3f}",
            f"{layer.max_over_mean:.2f}",
            f"{100 * layer.top_share:.1f} %",
        )
    return table


def _drift_table(report: HeatReport) -> Table | None:
    if not report.drift:
        return None
    title = "Drift: each window beside the one before it"
    drift = sorted(report.drift, key=lambda each: each.cosine)[:_SHOWN_WINDOWS]
    if len(drift) < len(report.drift):
        title += f"; the {len(drift)} least alike of {len(report.drift)}"
    table = Table(title=title, title_justify="left")
    for name in ("window", "cosine, mean of layers", "least", "in layer"):
        table.add_column(name, justify="right")
    for each in sorted(drift, key=lambda each: each.window):
        table.add_row(
            str(each.window), f"{each.cosine:.4f}", f"{each.least_cosine:.4f}", str(each.least_layer)
        )
    return table


def _kinds_table(report: HeatReport) -> Table | None:
    if not report.kind_pairs:
        return None
    table = Table(title="Kinds of tokens", title_justify="left")
    for name in ("kinds", "tokens x picks", "cosine", f"of the {report.top} hottest shared"):
        table.add_column(name, justify="right")
    for pair in report.kind_pairs:
        heat = " / ".join(f"{report.heat_per_kind[kind]:,}" for kind in pair.kinds)
        alike = ("none" if value is None else f"{value:.3f}" for value in (pair.cosine, pair.top_overlap))
        table.add_row(escape(" / ".join(pair.kinds)), heat, *alike)
    return table
