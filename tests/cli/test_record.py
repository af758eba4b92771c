"""`isotherm record`: the engine is started in its place, and told what to record."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from isotherm.cli.main import main
from isotherm.cli.record_run import RecordOptions, record_environment, split_command

RECORD = [sys.executable, "-m", "isotherm", "record"]
TELL = (
    "import json, os, sys;"
    "given = {k: v for k, v in os.environ.items() if k.startswith('ISOTHERM_OBSERVE')};"
    "print(json.dumps([sys.argv[1:], given])); sys.exit(7)"
)


def test_the_command_runs_in_our_place_with_its_own_arguments_and_exit_code(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TELL, "serve", "--config", "its.yaml", "--", "--help"]
    done = subprocess.run(
        [*RECORD, "--out", "some.heat", "--window-steps", "8", "--metrics-port", "9400", "--", *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    wanted = {
        "ISOTHERM_OBSERVE": str(tmp_path / "some.heat"),
        "ISOTHERM_OBSERVE_STEPS": "8",
        "ISOTHERM_OBSERVE_PORT": "9400",
    }
    assert done.returncode == 7, done.stderr
    assert json.loads(done.stdout) == [["serve", "--config", "its.yaml", "--", "--help"], wanted]


def test_signals_reach_the_command(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(43));"
        "print('ready', flush=True); time.sleep(100)"
    )
    command = [*RECORD, "--out", str(tmp_path / "some.heat"), "--", sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 43


def test_what_cannot_be_recorded_is_said_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there.heat"
    there.touch()
    for arguments, said in (
        (["--out", "a.heat"], "name the engine behind --"),
        (["--out", str(there), "--", "vllm"], "is there already"),
        (["--out", str(tmp_path / "no" / "a.heat"), "--", "vllm"], "make the folder"),
        (["--out", str(tmp_path / "a.heat"), "--", "no-such-engine"], "no-such-engine cannot be started"),
        (
            ["--out", str(tmp_path / "a.heat"), "--window-steps", "1", "--", "vllm"],
            "ISOTHERM_OBSERVE_STEPS=1",
        ),
    ):
        assert main(["record", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_plug_ins_loaded_by_name_must_name_ours() -> None:
    options = RecordOptions(out=Path("a.heat"))
    with pytest.raises(ValueError, match="add isotherm"):
        record_environment(options, {"VLLM_PLUGINS": "lora_resolver"})
    for names in ("isotherm", "lora_resolver,isotherm"):
        assert record_environment(options, {"VLLM_PLUGINS": names})["VLLM_PLUGINS"] == names


def test_what_an_older_call_left_in_the_environment_is_not_kept() -> None:
    options = RecordOptions(out=Path("a.heat"))
    assert "ISOTHERM_OBSERVE_PORT" not in record_environment(options, {"ISOTHERM_OBSERVE_PORT": "9400"})


def test_only_the_first_dashes_part_the_command_from_ours() -> None:
    assert split_command(["--out", "a", "--", "b", "--", "c"]) == (["--out", "a"], ["b", "--", "c"])
    assert split_command(["--out", "a"]) == (["--out", "a"], [])
