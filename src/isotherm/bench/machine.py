"""The machine that figures were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numba
import numpy as np
import torch

from isotherm import __version__


def describe_machine() -> dict[str, str]:
    """Processor, versions, and how busy the machine was before anything ran."""
    machine = {
        "processor": _processor(),
        "CPUs": str(os.cpu_count() or 1),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "numba": numba.__version__,
        "isotherm": __version__,
        "torch threads": "1",
    }
    if hasattr(os, "getloadavg"):
        machine["load before"] = f"{os.getloadavg()[0]:.1f}"
    return machine


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
