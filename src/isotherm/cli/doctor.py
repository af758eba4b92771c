"""What this machine has: versions, devices, policies, and whether its streams keep their contract."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isotherm import planner
from isotherm.cli.conflicts import ENGINES, find_conflicts, installed
from isotherm.errors import MissingExtraError
from isotherm.planner.outlook.forecast import forecasts

if TYPE_CHECKING:
    from isotherm.testing.streams_contract import CheckResult

_BASE = ("isotherm", "numpy", "numba", "rich", "tyro", "pyyaml")
_EXTRAS = {
    "torch": "torch",
    "transformers": "transformers",
    "safetensors": "transformers",
    "matplotlib": "plot",
    "prometheus-client": "metrics",
}
_IMPORTED_AS = {"pyyaml": "yaml", "prometheus-client": "prometheus_client"}


@dataclass(frozen=True)
class DeviceChecks:
    """How the contract of streams ended on one device."""

    device: str
    checks: tuple[CheckResult, ...]


@dataclass(frozen=True)
class DoctorReport:
    """What `isotherm doctor` found.

    ``versions`` maps packages to versions, None where one is missing; ``remedies`` maps each missing
    package to the command that installs it. ``accelerator`` names the device that torch sees and how many
    there are. ``engines`` maps those that are installed to versions; ``conflicts`` says what is known to go
    wrong here. ``devices`` is empty where streams were not asked for.
    """

    python: str
    platform: str
    cpus: int
    versions: dict[str, str | None]
    remedies: dict[str, str]
    accelerator: str | None
    gloo: bool
    policies: tuple[str, ...]
    forecasts: tuple[str, ...]
    engines: dict[str, str]
    conflicts: tuple[str, ...]
    devices: tuple[DeviceChecks, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every check that ran has passed."""
        return all(check.passed for device in self.devices for check in device.checks)

    def as_dict(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def collect_doctor_report(*, streams: bool) -> DoctorReport:
    """Looks at this machine; with ``streams`` runs the contract on every device that has streams.

    Raises:
        MissingExtraError: streams were asked for and torch is not installed.
    """
    if streams and find_spec("torch") is None:
        raise MissingExtraError("torch", "torch")
    versions = {package: _version(package) for package in (*_BASE, *_EXTRAS)}
    accelerator, gloo = _devices() if versions["torch"] else (None, False)
    return DoctorReport(
        python=platform.python_version(),
        platform=platform.platform(),
        cpus=os.cpu_count() or 1,
        versions=versions,
        remedies={
            package: f"pip install 'isotherm[{extra}]'"
            for package, extra in _EXTRAS.items()
            if versions[package] is None
        },
        accelerator=accelerator,
        gloo=gloo,
        policies=planner.policies(),
        forecasts=forecasts(),
        engines={engine: found for engine in ENGINES if (found := installed(engine)) is not None},
        conflicts=find_conflicts(),
        devices=_check_streams() if streams else (),
    )


def _version(package: str) -> str | None:
    # Looked for as an import: what cannot be imported helps nobody, whatever its metadata says.
    if find_spec(_IMPORTED_AS.get(package, package)) is None:
        return None
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _devices() -> tuple[str | None, bool]:
    import torch
    import torch.distributed as dist

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    shown = None if accelerator is None else f"{accelerator.type}, {torch.accelerator.device_count()} of it"
    gloo = dist.is_available() and dist.is_gloo_available()
    return shown, gloo


def _check_streams() -> tuple[DeviceChecks, ...]:
    from isotherm.testing.streams_contract import present_backends, run_contract

    return tuple(DeviceChecks(str(backend.device), run_contract(backend)) for backend in present_backends())


def render_doctor(report: DoctorReport, console: Console) -> None:
    """Prints the report as tables."""
    table = Table(title="This machine", show_header=False)
    table.add_row("Python", f"{report.python} on {report.platform}, {report.cpus} CPUs")
    for package, found in report.versions.items():
        table.add_row(package, found or f"missing: {report.remedies[package]}".replace("[", r"\["))
    table.add_row("accelerator", report.accelerator or "none that torch sees; the CPU is used")
    table.add_row("gloo", "available" if report.gloo else "not available: torch is missing or built without")
    table.add_row("policies", ", ".join(report.policies))
    table.add_row("forecasts", ", ".join(report.forecasts))
    engines = ", ".join(f"{engine} {found}" for engine, found in report.engines.items())
    table.add_row("engines beside", engines or "none")
    for conflict in report.conflicts:
        table.add_row("conflict", escape(conflict))
    console.print(table)
    for device in report.devices:
        console.print(_checks_table(device))


def _checks_table(device: DeviceChecks) -> Table:
    passed = sum(check.passed for check in device.checks)
    table = Table(title=f"Streams of {device.device}: {passed} of {len(device.checks)} promises kept")
    table.add_column("promise")
    table.add_column("kept")
    table.add_column("ms", justify="right")
    for check in device.checks:
        verdict = "yes" if check.passed else f"no: {check.detail}"
        table.add_row(check.name.replace("_", " "), verdict, f"{1e3 * check.seconds:.0f}")
    return table
