"""Examples that pages point to do what they say."""

import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parent.parent / "examples" / "prove_integration.py"


def prove(*arguments):
    command = [sys.executable, EXAMPLE, "--schedules", "3", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_a_right_integration_passes_every_schedule():
    done = prove()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no race" in done.stdout


def test_a_wrong_one_is_told_what_is_wrong():
    done = prove("--wrong")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "written after it was handed over" in done.stdout
    assert "prove_integration.py" in done.stdout
