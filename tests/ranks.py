"""Runs a function on several real processes over gloo."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"
START = "spawn" if sys.platform == "darwin" else "forkserver"  # macOS's own libraries do not survive a fork
PRELOADED = ["torch.distributed", "isotherm.balancer", "isotherm.testing"]
"""What each rank would take seconds to import: done once, in the server that ranks are
forked from."""


def run_ranks(
    function: Callable[..., Any], ranks: int, folder: Path, *args: Any, timeout: float = 100.0
) -> list[Any]:
    """What ``function(rank, *args)`` returned on each rank, in a gloo world of ``ranks`` processes.

    Fails with the traceback of the first rank that raised. No process is left behind.
    """
    context = multiprocessing.get_context(START)
    context.set_forkserver_preload(PRELOADED)
    processes = [
        context.Process(target=_entry, args=(function, rank, ranks, str(folder), args))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(timeout)
        alive = [rank for rank, process in enumerate(processes) if process.is_alive()]
        results = [_result(folder, rank) for rank in range(ranks)]
        errors = [error for _, error in results if error]
        assert not errors, errors[0]
        assert not alive, f"ranks {alive} still run after {timeout} s"
        exits = [process.exitcode for process in processes]
        assert exits == [0] * ranks, f"exit codes {exits}"
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [value for value, _ in results]


def _result(folder: Path, rank: int) -> tuple[Any, str | None]:
    path = folder / f"rank{rank}.pickle"
    if not path.exists():
        return None, None
    return pickle.loads(path.read_bytes())


def _entry(function: Callable[..., Any], rank: int, ranks: int, folder: str, args: tuple[Any, ...]) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    torch.set_num_threads(1)
    outcome: tuple[Any, str | None]
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    try:
        outcome = function(rank, *args), None
    except BaseException:
        outcome = None, f"rank {rank}:\n{traceback.format_exc()}"
    Path(folder, f"rank{rank}.pickle").write_bytes(pickle.dumps(outcome))
    if outcome[1] is None:
        dist.destroy_process_group()
    else:
        # Peers may wait for us for ever; leaving without a word makes their sockets fail.
        os._exit(1)
