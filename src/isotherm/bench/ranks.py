"""Two real processes over gloo, for what crosses ranks."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

import torch
import torch.distributed as dist

RANKS = 2

_Result = TypeVar("_Result")


def run_ranks(function: Callable[..., _Result], *arguments: Any) -> _Result:
    """What ``function(*arguments)`` returned on rank 0 of a gloo world of two processes on this machine. It
    is called on every rank. No process outlives the call.

    Raises:
        RuntimeError: a rank raised or ended; the message holds its traceback.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="isotherm-bench-") as folder:
        readers: list[Connection] = []
        processes: list[SpawnProcess] = []
        try:
            for rank in range(RANKS):
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(function, arguments, rank, folder, writer))
                process.start()
                writer.close()
                readers.append(reader)
                processes.append(process)
            result: _Result = _results(readers)[0]
            return result
        finally:
            for process in processes:
                process.kill()
                process.join()


def _results(readers: list[Connection]) -> list[Any]:
    """What the ranks sent, in their order. The first that failed is told, since the others wait for it."""
    results: dict[int, Any] = {}
    while len(results) < len(readers):
        for ready in wait([reader for rank, reader in enumerate(readers) if rank not in results]):
            rank = next(rank for rank, reader in enumerate(readers) if reader is ready)
            try:
                value, failure = readers[rank].recv()
            except EOFError:
                value, failure = None, "it ended without a word"
            if failure is not None:
                raise RuntimeError(f"rank {rank} of the benchmark failed: {failure}")
            results[rank] = value
    return [results[rank] for rank in range(len(readers))]


def _run(
    function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, folder: str, writer: Connection
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=RANKS,
            timeout=timedelta(minutes=5),
        )
        writer.send((function(*arguments), None))
    except BaseException:
        writer.send((None, traceback.format_exc()))
    writer.close()
    # Threads of ours or of gloo may be inside a collective, and the end of the interpreter would abort them.
    sys.stderr.flush()
    os._exit(0)


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), names[0])
