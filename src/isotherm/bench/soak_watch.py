"""What a process holds of its system, as it tells it: memory and threads."""

from __future__ import annotations

import os
from pathlib import Path

_STATUS = Path("/proc/self/statm")
_TASKS = Path("/proc/self/task")


def resident_bytes() -> int:
    """Memory of this process that lies in RAM; 0 where the system does not tell."""
    if not _STATUS.exists():
        return 0
    return int(_STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def num_threads() -> int:
    """Threads of this process, those of libraries too; 0 where the system does not tell."""
    return len(list(_TASKS.iterdir())) if _TASKS.exists() else 0
