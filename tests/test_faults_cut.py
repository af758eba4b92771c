"""The heartbeat's link is cut for a while: two network namespaces, and the cable between them is pulled."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from test_faults import make_weight_files

TESTS = Path(__file__).parent
RANK = """
import json, os, sys, time
sys.path.insert(0, {tests!r})
import torch.distributed as dist
from pathlib import Path
from test_faults import Engine

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=2)
engine = Engine(rank, 2, folder)
while not Path(folder, "stop").exists():
    engine.step()
    time.sleep(0.005)
    if engine.steps % 8 == 0:
        now = engine.balancer.statistics()
        told = dict(state=now.state.value, windows=now.windows, moves=now.moves,
                    failures=now.failures.as_dict(), waits=now.waits, wrong=engine.wrong)
        Path(folder, f"part{{rank}}").write_text(json.dumps(told))
        Path(folder, f"part{{rank}}").replace(Path(folder, f"told{{rank}}"))
os._exit(0)  # the other may be a step ahead, which closing would tell
"""


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)


@contextmanager
def namespaces():
    """Two namespaces, and a cable between them; skips where that is not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("there is no command ip to make network namespaces with")
    names = [f"isotherm-{os.getpid()}-{rank}" for rank in range(2)]
    try:
        made = [ip("netns", "add", name) for name in names]
        made.append(
            ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "cable", "netns", names[1])
        )
        for rank, name in enumerate(names):
            made.append(ip("-n", name, "address", "add", f"10.213.7.{rank + 1}/24", "dev", "cable"))
            made += [ip("-n", name, "link", "set", device, "up") for device in ("lo", "cable")]
        refused = [each.stderr.strip() for each in made if each.returncode]
        if refused:
            pytest.skip(f"network namespaces cannot be made here: {refused[0]}")
        yield names
    finally:
        for name in names:
            ip("netns", "delete", name)


def told(folder, rank):
    path = folder / f"told{rank}"
    return json.loads(path.read_text()) if path.exists() else None


def wait_for(folder, processes, condition):
    """What both ranks tell once the condition holds for both."""
    deadline = time.monotonic() + 90
    while True:
        both = [told(folder, rank) for rank in range(2)]
        if all(each is not None and condition(rank, each) for rank, each in enumerate(both)):
            return both
        assert all(process.poll() is None for process in processes), "a rank ended"
        assert time.monotonic() < deadline, both
        time.sleep(0.05)


def test_a_link_that_is_cut_and_restored_is_told_and_balancing_goes_on(tmp_path):
    make_weight_files(tmp_path, 2)
    with namespaces() as names:
        program = RANK.format(tests=str(TESTS))
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": "cable"}
        processes = [
            subprocess.Popen(
                ["ip", "netns", "exec", name, sys.executable, "-c", program, str(rank), str(tmp_path)],
                env=environment,
            )
            for rank, name in enumerate(names)
        ]
        try:
            before = wait_for(tmp_path, processes, lambda rank, now: now["moves"] > 0)
            ip("-n", names[0], "link", "set", "cable", "down")
            cut = wait_for(tmp_path, processes, lambda rank, now: now["state"] == "degraded")
            ip("-n", names[0], "link", "set", "cable", "up")
            after = wait_for(
                tmp_path,
                processes,
                lambda rank, now: now["state"] != "degraded" and now["moves"] > cut[rank]["moves"] + 2,
            )
            (tmp_path / "stop").touch()
            assert [process.wait(60) for process in processes] == [0, 0]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    for was, now in zip(before, after, strict=True):
        assert now["failures"]["stalled"] + now["failures"]["link_lost"] >= 1
        assert now["windows"] > was["windows"]
        assert (now["waits"], now["wrong"]) == (0, 0)
