"""Triton's kernel, where Triton is installed: in its interpreter bit for bit, and compiled without a device.

In processes of their own: Triton decides when it is imported whether it interprets.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install 'isotherm[dev]' on Linux x86_64")
HERE = Path(__file__).parent


def run(program, folder, **environment):
    done = subprocess.run(
        [sys.executable, HERE / program],
        env=os.environ | {"TRITON_CACHE_DIR": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_the_interpreter_gives_what_the_oracle_gives(tmp_path):
    assert "15 batches are equal" in run("interpreted.py", tmp_path, TRITON_INTERPRET="1")


def test_the_kernel_compiles_for_the_devices_of_two_makers(tmp_path):
    assert run("offline.py", tmp_path)[:2] == ["cuda", "hip"]
