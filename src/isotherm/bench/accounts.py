"""Where the time of steps went: to the engine's thread, to other threads, to waiting for a core."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np

from isotherm.arrays import FloatArray

_WAITED = Path("/proc/thread-self/schedstat")
_UNITS_MS = 1e-6

ACCOUNTS = ("wall", "engine's CPU", "others' CPU", "no core")
"""What `read_accounts` reads."""


def read_accounts() -> FloatArray:
    """Milliseconds up to now, as `ACCOUNTS` names them: on the wall; CPU time of the calling thread; CPU time
    of all other threads of this process, of those that have ended too; how long the calling thread could
    have run and had no core, NaN where the system does not tell. Only differences mean anything."""
    engine, process = time.thread_time_ns(), time.process_time_ns()
    waited = float(_WAITED.read_text().split()[1]) if _WAITED.exists() else np.nan
    return np.array([time.perf_counter_ns(), engine, process - engine, waited]) * _UNITS_MS


def num_spare_cores(busy: int) -> int:
    """Cores that this process may use beyond ``busy`` ones."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores - busy, 0)
