"""The contract of streams, to hold any `isotherm.streams.Backend` to.

    results = run_contract(backend_for("cpu"))

`isotherm.testing.streams_checks` has the promises, one check each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from isotherm.streams import Backend, backend_for
from isotherm.testing.streams_checks import CHECKS

__all__ = ["CHECKS", "CheckResult", "present_backends", "run_check", "run_contract"]


@dataclass(frozen=True)
class CheckResult:
    """How one check ended. ``detail`` is empty when it passed."""

    name: str
    passed: bool
    detail: str
    seconds: float


def present_backends() -> tuple[Backend, ...]:
    """The host's backend, and the accelerator's where there is one that has streams."""
    backends = [backend_for("cpu")]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and accelerator.type != "mps":
        backends.append(backend_for(accelerator))
    return tuple(backends)


def run_contract(backend: Backend, *, timeout_seconds: float = 60.0) -> tuple[CheckResult, ...]:
    """Runs every check, one after the other. Failures are results and never raise."""
    return tuple(run_check(check, backend, timeout_seconds=timeout_seconds) for check in CHECKS)


def run_check(
    check: Callable[[Backend], None], backend: Backend, *, timeout_seconds: float = 60.0
) -> CheckResult:
    """Runs one check on a thread of its own. One that takes longer than the time-out has failed,
    and is left behind: a broken stream may never return."""
    failures: list[str] = []

    def run() -> None:
        try:
            check(backend)
        except AssertionError as error:
            failures.append(str(error) or "an assertion without a message failed")
        except Exception as error:
            failures.append(f"raised {type(error).__name__}: {error}")

    thread = threading.Thread(target=run, name=f"check-{check.__name__}", daemon=True)
    started = time.perf_counter()
    thread.start()
    thread.join(timeout_seconds)
    if thread.is_alive():
        failures.append(f"not done after {timeout_seconds:g} s")
    seconds = time.perf_counter() - started
    return CheckResult(check.__name__, not failures, "; ".join(failures), seconds)
