"""Starts the demo's ranks with torch's own launcher and turns how they ended into an exit code."""

from __future__ import annotations

import logging
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from isotherm.demo.options import DEFAULT_RANKS, DemoOptions
from isotherm.demo.text import load_corpus
from isotherm.errors import MissingExtraError

LAUNCHED = "ISOTHERM_DEMO_LAUNCHED"
"""Set in ranks that `launch_ranks` started: the folder where each leaves why it refused, so that the user is
told once."""


def launched_by_torch() -> bool:
    """Whether this process is a rank, started by torchrun or by `launch_ranks`."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch_ranks(options: DemoOptions, arguments: Sequence[str]) -> int:
    """Runs the demo on this machine's processes; its exit code. No process outlives the call.

    ``arguments`` are the command line's, passed on to every rank.

    Raises:
        ValueError: something that every rank would refuse, found before any starts.
        MissingExtraError: torch, transformers or matplotlib is not installed.
        KeyboardInterrupt: the user stopped it.
    """
    check_extras()
    load_corpus(options.text or None)
    if options.port is not None:
        _check_port(options.port)
    _check_choices(options)
    _warm_up(Console(stderr=True))
    return _run_ranks(options, arguments)


def check_extras() -> None:
    """Raises MissingExtraError for the first package that the demo needs and does not find."""
    from importlib.util import find_spec

    for package, extra in (("torch", "torch"), ("transformers", "transformers"), ("matplotlib", "plot")):
        if find_spec(package) is None:
            raise MissingExtraError(package, extra)


def _run_ranks(options: DemoOptions, arguments: Sequence[str]) -> int:
    # The launcher reports each failed rank at length; the user gets one line, from us.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="isotherm-") as refusals:
        _set_environment(refusals)
        return _launch(options, arguments, Path(refusals))


def _launch(options: DemoOptions, arguments: Sequence[str], refusals: Path) -> int:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=options.ranks or DEFAULT_RANKS,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint=f"127.0.0.1:{options.port or 0}",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "isotherm", "demo", *arguments)
    except SignalException as stopped:  # by then the launcher has stopped every rank
        raise KeyboardInterrupt from stopped
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode not in (1, 2):
            raise RuntimeError(f"rank {rank} ended with exit code {failure.exitcode}") from error
        if failure.exitcode == 2:
            raise ValueError(_told(refusals)) from error
        return failure.exitcode
    return 0


def tell_launcher(message: str) -> None:
    """Leaves ``message`` where the process that launched this rank finds it."""
    Path(os.environ[LAUNCHED], f"{int(os.environ['RANK']):06}").write_text(message)


def _told(refusals: Path) -> str:
    """What the lowest rank that refused said."""
    told = sorted(refusals.iterdir())
    return told[0].read_text() if told else "a rank refused its options and did not say why"


def _set_environment(refusals: str) -> None:
    os.environ[LAUNCHED] = refusals
    # One thread per rank: the ranks share this machine's cores.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback())
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in ("lo", "lo0") if name in names), names[0])


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"--port {port} cannot be used ({error}): choose another, or leave it out for any free one"
            ) from error


def _check_choices(options: DemoOptions) -> None:
    """Looks up model and policy once here, so that wrong ones are told before any rank starts."""
    from isotherm.planner import get_policy

    get_policy(options.policy)
    from isotherm.demo.engine import demo_topology, load_model, quiet_transformers

    quiet_transformers()
    demo_topology(load_model(options.model), options.ranks or DEFAULT_RANKS, options, nodes=1)


def _warm_up(console: Console) -> None:
    """Compiles the kernels once, here, so that the ranks find them in numba's cache."""
    from isotherm import planner, router

    with console.status("compiling kernels (the first time only)"):
        planner.warm_up()
        router.warm_up()
