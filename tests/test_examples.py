"""Examples that pages point to do what they say."""

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(example, *arguments):
    command = [sys.executable, EXAMPLES / example, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def prove(*arguments):
    return run("prove_integration.py", "--schedules", "3", *arguments)


def test_a_right_integration_passes_every_schedule():
    done = prove()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no race" in done.stdout


def test_a_wrong_one_is_told_what_is_wrong():
    done = prove("--wrong")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "written after it was handed over" in done.stdout
    assert "prove_integration.py" in done.stdout


def test_workloads_are_compared_beside_no_plan(tmp_path):
    for name, hot in (("a", 0), ("b", 3)):
        heat = [[900 if expert == hot else 100 for expert in range(8)] for _ in range(2)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"logical_count": heat}))
    done = run("compare_workloads.py", "--traces", tmp_path, "--ranks", "4", "--redundant", "4")
    assert done.returncode == 0, done.stderr
    assert "2 changes of workload" in done.stdout
    # Slot p holds expert p % 8, so the hottest of 4 ranks has half of the hot expert and two others.
    (unbalanced,) = (line for line in done.stdout.splitlines() if "(no plan)" in line)
    assert unbalanced.split("│")[2].strip() == f"{400 / 650:.3f}"
    assert "incremental" in done.stdout


def test_a_timeline_is_drawn_track_by_track(tmp_path):
    tracks = {1: "main", 2: "heartbeat", 3: "planner"}
    spans = [
        ("forward 1", 1, 0, 900),
        ("snapshot of step 1", 1, 900, 1),
        ("headers", 2, 0, 9),
        ("plan", 3, 5, 9),
    ]
    events = [
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": tid, "args": {"name": name}}
        for tid, name in tracks.items()
    ]
    events += [
        {"name": name, "ph": "X", "pid": 0, "tid": tid, "ts": 1e3 * start, "dur": 1e3 * duration}
        for name, tid, start, duration in spans
    ]
    (tmp_path / "timeline.json").write_text(json.dumps({"traceEvents": events}))
    done = run("draw_timeline.py", tmp_path / "timeline.json", "--out", tmp_path / "lanes.png")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "lanes.png").read_bytes().startswith(b"\x89PNG")
