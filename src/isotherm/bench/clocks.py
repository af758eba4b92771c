"""What timed code runs under, and the CPU clocks of other threads."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def quiet() -> Iterator[None]:
    """One thread for torch, so that the main thread's CPU time is all of it, and no garbage collection."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        torch.set_num_threads(threads)


def has_thread_clocks() -> bool:
    """Whether this system shows the CPU time of one thread to another."""
    return hasattr(time, "pthread_getcpuclockid")


def our_threads() -> dict[str, threading.Thread]:
    """The background threads that Isotherm runs in this process, by name."""
    return {
        thread.name.removeprefix("isotherm-"): thread
        for thread in threading.enumerate()
        if thread.name.startswith("isotherm-")
    }


def thread_cpu_ns(thread: threading.Thread) -> int:
    """CPU time of ``thread`` since it began, in nanoseconds."""
    assert thread.ident is not None, "the thread runs"
    return time.clock_gettime_ns(time.pthread_getcpuclockid(thread.ident))
