"""`isotherm record`: starts an engine and collects the heat of its experts beside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from isotherm.engines.vllm.settings import OBSERVED, PORT, WINDOW, WINDOW_STEPS, VllmSettings
from isotherm.traces.problems import problem

SEPARATOR = "--"
PLUG_INS = "VLLM_PLUGINS"
"""Which plug-ins vLLM loads; all where it is not set."""


@dataclass(frozen=True)
class RecordOptions:
    """Starts vLLM and collects the heat of its experts beside it.

    What follows -- is started as it is, in the place of this command: signals reach it and its exit code is
    the command's. Isotherm must be installed in vLLM's environment, on every node; what vLLM answers does not
    change. The file gets a window every so many steps, and the rest when vLLM ends in good order.

    Examples:
        isotherm record --out chat.heat -- vllm serve Qwen/Qwen3-30B-A3B --enable-expert-parallel
        isotherm record --out chat.heat --metrics-port 9400 -- vllm serve deepseek-ai/DeepSeek-V2-Lite
        isotherm record --out batch.heat --window-steps 32 -- python generate.py
    """

    out: Path
    """The heat file to write."""
    append: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with a file that is there, of the same model and cluster."""
    window_steps: int = WINDOW_STEPS
    """Steps of the engine in a window."""
    metrics_port: int | None = None
    """Serve metrics for Prometheus at this port, from the first rank."""


def split_command(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments of this command, and the command that is to be started: what follows the first ``--``."""
    own = list(arguments)
    if SEPARATOR not in own:
        return own, []
    place = own.index(SEPARATOR)
    return own[:place], own[place + 1 :]


def run_record(options: RecordOptions, command: Sequence[str]) -> int:
    """Becomes ``command``, which records; returns only where it cannot be started.

    Raises:
        ValueError: no command, a file that is there already or cannot be, or a command that is not found.
    """
    if not command:
        raise ValueError("nothing to start: name the engine behind --, as in -- vllm serve MODEL")
    if options.out.exists() and not options.append:
        raise problem(options.out, "", "is there already: give another name, or --append")
    if not options.out.absolute().parent.is_dir():
        raise problem(options.out, "", "lies in no folder: make the folder first")
    environment = record_environment(options, os.environ)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvpe(command[0], list(command), environment)
    except OSError as error:
        raise ValueError(f"{command[0]} cannot be started: {error.strerror}") from error


def record_environment(options: RecordOptions, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment in which the engine records.

    Raises:
        ValueError: a number that cannot be, or plug-ins that are loaded by name without ours.
    """
    wanted = {**environment, OBSERVED: str(options.out.absolute()), WINDOW: str(options.window_steps)}
    wanted.pop(PORT, None)
    if options.metrics_port is not None:
        wanted[PORT] = str(options.metrics_port)
    VllmSettings.of(wanted)
    named = environment.get(PLUG_INS)
    if named is not None and "isotherm" not in named.split(","):
        raise ValueError(f"{PLUG_INS}={named} keeps vLLM from loading Isotherm: add isotherm to it")
    return wanted
