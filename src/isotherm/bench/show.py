"""Reports as tables, and the targets that fall short."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isotherm.bench.figures import Figure, Report, Section, Target

_PIPE_WIDTH = 150


def wide_console() -> Console:
    """Stdout; a pipe has no width of its own."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=_PIPE_WIDTH, highlight=False)


def show_report(report: Report, console: Console) -> None:
    """Prints the machine, the table of each section, and all targets."""
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    console.print(f"bench {report.name}, {report.seconds:.0f} s: {machine}", markup=False)
    for section in report.sections:
        console.print(_table(section))
        console.print(section.note, style="dim", markup=False)
    console.print(_targets_table(report))


def show_shortfalls(reports: Sequence[Report], console: Console) -> None:
    """Prints the targets that fall short, over all reports."""
    short = [(report, target) for report in reports for target in report.targets if not target.ok]
    total = sum(len(report.targets) for report in reports)
    console.print(f"{total - len(short)} of {total} targets reached", style="bold", markup=False)
    for report, target in short:
        console.print(
            f"falls short: {report.name}: {target.name}: {_number(target.value)}, to be {_limit(target)}",
            markup=False,
        )


def _table(section: Section) -> Table:
    rows = dict.fromkeys(figure.row for figure in section.figures)
    columns = dict.fromkeys(figure.column for figure in section.figures)
    units = {column: _unit(section, column) for column in columns}
    cells = {(figure.row, figure.column): _cell(figure, units[figure.column]) for figure in section.figures}
    table = Table(title=section.title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(escape(f"{column}, {units[column]}" if units[column] else column), justify="right")
    for row in rows:
        table.add_row(escape(row), *(cells.get((row, column), "") for column in columns))
    return table


def _unit(section: Section, column: str) -> str:
    """The unit of a whole column, or nothing."""
    units = {figure.unit for figure in section.figures if figure.column == column}
    return units.pop() if len(units) == 1 else ""


def _cell(figure: Figure, unit: str) -> str:
    value = _number(figure.value) if unit else f"{_number(figure.value)} {figure.unit}"
    if figure.spread == "exact":
        return value
    if figure.spread == "median to p99":
        return f"{value}, p99 {_number(figure.high)}"
    return f"{value} ({_number(figure.low)}–{_number(figure.high)})"


def _targets_table(report: Report) -> Table:
    table = Table(title="Targets", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("to be", justify="right")
    table.add_column("reached")
    for target in report.targets:
        reached = "yes" if target.ok else "[bold]no[/bold]"
        table.add_row(target.name, _number(target.value), _limit(target), reached)
    return table


def _limit(target: Target) -> str:
    return f"{'at least' if target.at_least else 'at most'} {_number(target.limit)}"


def _number(value: float) -> str:
    """Three digits, all of a whole number, and those of a ratio that tell it from 1."""
    if 0.8 < value < 1 or 1 < value < 1.1:
        return f"{value:.4f}"
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
