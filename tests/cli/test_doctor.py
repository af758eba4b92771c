"""What the doctor knows of conflicts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from isotherm.cli import conflicts
from isotherm.cli.doctor import collect_doctor_report, render_doctor


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, list[str]]]:
    """Packages that are installed: version and what they want."""
    there: dict[str, tuple[str, list[str]]] = {"numba": ("0.65.1", []), "torch": ("2.13.0+cpu", [])}

    def find(index: int):
        def look_up(package: str):
            if package not in there:
                raise conflicts.PackageNotFoundError(package)
            return there[package][index]

        return look_up

    monkeypatch.setattr(conflicts, "version", find(0))
    monkeypatch.setattr(conflicts, "requires", find(1))
    return there


@pytest.mark.parametrize(
    ("wanted", "is_kept"),
    [
        ("numba==0.65.1", True),
        ("numba==0.65", False),
        ("numba (>=0.60,<0.66)", True),
        ("numba>=0.60,<0.65.1", False),
        ("numba>=0.66", False),
        ("numba>0.65.0", True),
        ("torch==2.13", True),
        ("torch<=2.12; extra == 'gpu'", False),
        ("numba==0.1; python_version < '3.9'", True),
        ("scipy==0.1", True),
        ("numba-scipy==9", True),
        ("torch", True),
    ],
)
def test_bounds_on_what_is_shared_are_held_against_what_is_there(
    packages, wanted: str, is_kept: bool
) -> None:
    packages["vllm"] = ("0.33", [wanted])
    found = conflicts.find_conflicts({})
    assert (not found) == is_kept
    if not is_kept:
        assert found[0].startswith(f"vllm wants {wanted.partition(';')[0]}, and {wanted[:5].strip()}")


def test_a_machine_without_conflicts_has_none_and_settings_are_told() -> None:
    assert conflicts.find_conflicts({"NUMBA_DISABLE_JIT": "0"}) == ()
    assert "too slow to serve" in conflicts.find_conflicts({"NUMBA_DISABLE_JIT": "1"})[0]


def test_the_report_shows_conflicts_and_engines(packages) -> None:
    packages["sglang"] = ("0.5", ["numba==0.1"])
    report = collect_doctor_report(streams=False)
    assert report.engines == {"sglang": "0.5"}
    assert {"pyyaml", "prometheus-client"} <= {name for name, found in report.versions.items() if found}
    assert report.forecasts[:2] == ("changepoint", "mean")
    assert report.as_dict()["conflicts"] == ("sglang wants numba==0.1, and numba 0.65.1 is installed",)
    console = Console(record=True, width=120, file=io.StringIO())
    render_doctor(report, console)
    text = console.export_text()
    assert "sglang 0.5" in text
    assert "sglang wants numba==0.1" in text
