"""Figures, their spread, and how they are shown."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from isotherm.bench.figures import Figure, Report, Section, Target
from isotherm.bench.show import show_report, show_shortfalls


def make_report():
    figures = (
        Figure.of("1,024 tokens", "table[ids]", "µs", [1.0, 2.0, 3.0]),
        Figure.exact("1,024 tokens", "calls", "", 12345.0),
        Figure.with_tail("one", "latency", "ms", [1.0] * 98 + [9.0, 9.0]),
        Figure.exact("one", "mixed", "µs", 2.0),
        Figure.exact("two", "mixed", "%", 2.5),
    )
    targets = (Target("fast", 1.0, 1.0), Target("small", 2.0, 1.0))
    section = Section("A table", "what it includes", figures, targets)
    return Report("heat", {"CPUs": "2"}, 3.0, (section, Section("Another", "of nothing", ())))


def shown(show, *arguments):
    console = Console(width=150, file=io.StringIO())
    show(*arguments, console)
    return console.file.getvalue()


def test_spread_is_what_it_says():
    samples = list(range(101))
    figure = Figure.of("row", "column", "µs", samples)
    assert (figure.value, figure.low, figure.high, figure.samples) == (50, 10, 90, 101)
    tail = Figure.with_tail("row", "column", "µs", samples)
    assert (tail.value, tail.high) == (50, 99)


def test_the_interval_of_differences_holds_the_true_median_as_often_as_it_says():
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        samples = rng.normal(3, 1, 24)
        samples[rng.integers(24)] += 1000  # another process
        figure = Figure.of_differences("row", "column", "µs", samples.tolist())
        assert figure.low <= figure.value <= figure.high < 10
        held += figure.low <= 3 <= figure.high
    assert 0.9 <= held / 200 <= 0.99
    same = Figure.of_differences("row", "column", "µs", samples.tolist())
    assert same == figure


@pytest.mark.parametrize(("value", "ok"), [(0.9, True), (1.0, True), (1.1, False), (float("nan"), False)])
def test_a_target_is_reached_at_its_limit(value, ok):
    assert Target("it", value, 1.0).ok is ok


def test_a_report_comes_back_from_json_as_it_was():
    report = make_report()
    data = json.loads(json.dumps(report.as_dict()))
    assert [target["ok"] for target in data["targets"]] == [True, False]
    assert Report.from_dict(data) == report


def test_a_missing_figure_is_an_error():
    with pytest.raises(KeyError, match="no figure at row 'three'"):
        make_report().sections[0].figure("three", "mixed")


def test_tables_hold_every_figure_with_its_unit():
    text = shown(show_report, make_report())
    for cell in ("table[ids], µs", "2 (1.2–2.8)", "12,345", "latency, ms", "1, p99 9", "2 µs", "2.5 %"):
        assert cell in text, cell
    assert "what it includes" in text
    assert "CPUs 2" in text


def test_shortfalls_of_all_reports_are_told():
    report = make_report()
    other = replace(report, name="other", sections=report.sections[:1])
    text = shown(show_shortfalls, [report, other])
    assert text.splitlines() == [
        "2 of 4 targets reached",
        "falls short: heat: small: 2, to be at most 1",
        "falls short: other: small: 2, to be at most 1",
    ]
