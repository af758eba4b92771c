"""Stdout as scripts need it: whoever reads it may leave, and it takes names of any file."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class _Patient(io.FileIO):
    """A descriptor whose reader may leave, as ``head`` does: the rest goes nowhere, and the work goes on, so
    that files are written and the exit code says what it says to everybody else."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def prepare_stdout() -> None:
    """Replaces the stdout that the interpreter made; one that a caller of ours put there stays."""
    if sys.stdout is None:  # closed by whoever started us
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    made = sys.stdout
    if made is not sys.__stdout__ or not isinstance(made, io.TextIOWrapper):
        return
    made.flush()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Patient(made.fileno(), "w", closefd=False)),
        encoding=made.encoding,
        # Names of files hold what the encoding of a terminal may not.
        errors="backslashreplace" if made.errors == "strict" else made.errors,
        line_buffering=made.line_buffering,
        write_through=made.write_through,
    )


def settle_stdout() -> None:
    """Where stdout cannot be written, as on a full disk: the interpreter must not try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
