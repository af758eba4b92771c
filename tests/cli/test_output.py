"""Stdout that nobody reads, that is full, or that knows few letters."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import isotherm as iso
from isotherm.cli.main import main

TALK = """
import sys
from rich.console import Console
from isotherm.cli.output import prepare_stdout, settle_stdout
prepare_stdout()
prepare_stdout()
print("name \\u6e29")
try:
    Console(width=20).print("row \\udcff", markup=False)
    sys.stdout.flush()
except OSError as error:
    print(type(error).__name__, error.errno, file=sys.stderr)
    settle_stdout()
sys.exit(3)
"""


def talk(stdout: int, **environment: str) -> subprocess.CompletedProcess[str]:
    """Ends in 3 where nothing but the code of the work counts."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(
        [sys.executable, "-c", TALK], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=100,
        check=False, env=buffered | environment,
    )  # fmt: skip


def test_a_reader_that_left_changes_no_exit_code() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = talk(write)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (3, "")


def test_a_terminal_that_knows_few_letters_shows_them_as_codes() -> None:
    done = talk(subprocess.PIPE, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout == "name \\u6e29\nrow \\udcff\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_once() -> None:
    with open("/dev/full", "w") as full:
        done = talk(full.fileno())
    assert (done.returncode, done.stderr) == (3, "OSError 28\n")


def test_an_interruption_is_one_whatever_another_package_makes_of_it(
    tmp_path: Path, capsys, monkeypatch
) -> None:
    def import_slowly(*_: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise RuntimeError("Error calling __set_name__") from error

    np.save(tmp_path / "some.npy", np.ones((2, 4)))
    monkeypatch.setattr("isotherm.cli.inspect_file.check_picture", import_slowly)
    assert main(["inspect", str(tmp_path / "some.npy")]) == 130
    assert capsys.readouterr().err == "interrupted\n"


class Full:
    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        pass


class Scarce:
    def __call__(self, *_: object, **__: object) -> None:
        raise MemoryError("unable to allocate 364 TiB")


def test_what_the_machine_refuses_is_one_message(tmp_path: Path, capsys, monkeypatch) -> None:
    path = tmp_path / "some.npy"
    np.save(path, np.ones((2, 4)))
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Full())
        assert main(["inspect", str(path), "--json"]) == 2
    assert capsys.readouterr().err == "isotherm: [Errno 28] No space left on device\n"
    monkeypatch.setattr(iso.traces.skew, "measure_skew", Scarce())
    assert main(["inspect", str(path)]) == 2
    assert capsys.readouterr().err == (
        "isotherm: there is not enough memory for this: unable to allocate 364 TiB\n"
    )
