"""The command as a user runs it: what it prints, where, and how it exits."""

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from isotherm.bench.figures import Figure, Report, Section, Target
from isotherm.cli.doctor import collect_doctor_report, render_doctor
from isotherm.cli.main import main
from isotherm.streams import backend_for
from isotherm.testing.streams_contract import CHECKS

ISOTHERM = [sys.executable, "-m", "isotherm"]
WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
import importlib.util
found = importlib.util.find_spec
def find_spec(name, package=None):
    try:
        return found(name, package)
    except ModuleNotFoundError:
        return None
importlib.util.find_spec = find_spec
"""


def run(*arguments, program=None):
    command = ISOTHERM if program is None else [sys.executable, "-c", program]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=100, check=False)


def without_torch(*arguments):
    program = f"{WITHOUT_TORCH}\nfrom isotherm.cli.main import main\nsys.exit(main(sys.argv[1:]))\n"
    return run(*arguments, program=program)


def test_doctor_holds_streams_to_their_contract_and_prints_json_alone():
    done = run("doctor", "--streams", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert report["versions"]["numba"]
    assert report["gloo"]
    assert report["policies"][:2] == ["incremental", "deepseek"]
    host = report["devices"][0]
    assert host["device"] == "cpu"
    assert [check["name"] for check in host["checks"]] == [check.__name__ for check in CHECKS]
    assert all(check["passed"] for check in host["checks"])


def test_a_broken_stream_is_told_and_ends_in_1(monkeypatch):
    class Forgetful(type(backend_for("cpu"))):
        def side_stream(self, name):
            stream = super().side_stream(name)
            return type("Stream", (), {"__getattr__": lambda self, name: getattr(stream, name),
                                       "submit": lambda self, work, reads=(), writes=(): None})()  # fmt: skip

    monkeypatch.setattr("isotherm.testing.streams_contract.present_backends", lambda: (Forgetful(),))
    monkeypatch.setattr("isotherm.testing.streams_contract.CHECKS", CHECKS[:1])
    report = collect_doctor_report(streams=True)
    assert not report.ok
    console = Console(record=True, width=120, file=io.StringIO())
    render_doctor(report, console)
    assert "0 of 1 promises kept" in console.export_text()


def test_without_torch_the_doctor_says_what_is_missing_and_how_to_get_it():
    done = without_torch("doctor")
    assert done.returncode == 0, done.stderr
    assert "missing: pip install 'isotherm[torch]'" in done.stdout
    assert "missing: pip install 'isotherm[transformers]'" in done.stdout


@pytest.mark.parametrize("arguments", [("doctor", "--streams"), ("demo",), ("bench", "heat")])
def test_without_torch_what_needs_it_ends_in_one_message(arguments):
    done = without_torch(*arguments)
    assert done.returncode == 2
    assert (
        done.stderr
        == "isotherm: 'torch' is not installed, and this needs it: pip install 'isotherm[torch]'\n"
    )


def test_planning_needs_no_torch():
    program = f"{WITHOUT_TORCH}\nimport isotherm as iso\n"
    program += (
        "plan = iso.plan([[4, 2, 1]], iso.Topology(ranks=2, slots_per_rank=2))\n"
        "print(plan.imbalance.max() < 1.01)\n"
        "try:\n    iso.Balancer\nexcept iso.MissingExtraError as error:\n    print(error)\n"
    )
    done = run(program=program)
    assert done.stdout.splitlines() == [
        "True",
        "'torch' is not installed, and this needs it: pip install 'isotherm[torch]'",
    ], done.stderr


def test_wrong_use_is_2_and_help_has_examples():
    for arguments in ((), ("demo", "--step", "5"), ("doctor", "--stream"), ("bench", "cold"), ("dance",)):
        done = run(*arguments)
        assert done.returncode == 2, arguments
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert re.search(r"isotherm (bench )?--help", done.stderr)
    helped = run("demo", "--help")
    assert helped.returncode == 0
    assert "isotherm demo --ranks 4 --steps 80" in " ".join(helped.stdout.split())


def test_a_reader_that_leaves_is_no_fault():
    # Where stdout is buffered, it is written when the interpreter ends.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    doctor = subprocess.Popen(
        [*ISOTHERM, "doctor", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=buffered,
    )
    doctor.stdout.close()
    errors = doctor.stderr.read()
    doctor.stderr.close()
    assert doctor.wait(timeout=60) == 0, errors
    assert errors == ""


def test_bench_prints_json_alone_and_says_what_it_measures_on_stderr(monkeypatch, capsys):
    asked = []

    def measure_heat(*, quick, tell):
        asked.append(quick)
        tell("measuring ...")
        section = Section("Some", "as measured", (Figure.exact("a row", "a column", "µs", 3.0),))
        return Report("heat", {"CPUs": "2"}, 1.0, (replace(section, targets=(Target("it", 3.0, 2.0),)),))

    monkeypatch.setattr("isotherm.bench.heat.measure_heat", measure_heat)
    assert main(["bench", "heat", "--json", "--quick"]) == 0
    printed = capsys.readouterr()
    target = {"name": "it", "value": 3.0, "limit": 2.0, "at_least": False, "ok": False}
    assert json.loads(printed.out)["targets"] == [target]
    assert printed.err == "measuring ...\n"
    assert main(["bench", "heat"]) == 0
    printed = capsys.readouterr()
    assert "falls short: heat: it: 3, to be at most 2" in printed.out
    assert printed.err == "measuring ...\n"
    assert asked == [True, False]
