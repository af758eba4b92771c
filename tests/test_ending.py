"""How balancers end: twice in a process, not at all, after a fork."""

import os
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from isotherm import Balancer, Config, MoEShape, Topology
from ranks import run_ranks

TESTS = Path(__file__).parent


def serve(how):
    config = Config(mode="full", window_steps=4, heartbeat_seconds=0.002)
    shape, topology = MoEShape(1, 4, 1), Topology(ranks=2, slots_per_rank=3)
    balancer = Balancer(shape, topology, group=dist.new_group(backend="gloo"), weights=None, config=config)
    for _ in range(20):
        with balancer.step(4):
            balancer.route(0, torch.arange(4)[:, None])
        time.sleep(0.002)
    if how == "closed":
        balancer.close()
        balancer.close()
    return balancer


def end(rank):
    """Two balancers, one after the other; the second and third are never closed."""
    serve("closed")
    end.kept = serve("left"), serve("left")
    return [balancer.statistics().failures.total for balancer in end.kept]


def test_a_balancer_that_is_never_closed_ends_with_the_process(tmp_path):
    assert run_ranks(end, 2, tmp_path) == [[0, 0]] * 2  # and exit codes 0


FORK = """
import os, sys, warnings
sys.path.insert(0, {tests!r})
import torch
from isotherm import Balancer, IsothermError, MoEShape, Topology
from memory_link import memory_links

shape, topology = MoEShape(1, 4, 1), Topology(ranks=1, slots_per_rank=4)
balancer = Balancer(shape, topology, group=memory_links(1)[0], weights=None)
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
child = os.fork()
if child == 0:
    try:
        balancer.begin_step(4)
    except IsothermError as error:
        print(error, flush=True)
    balancer.close()
    os._exit(0)
_, status = os.waitpid(child, 0)
print("status", status)
with balancer.step(4):
    balancer.route(0, torch.arange(4)[:, None])
balancer.close()
print("closed")
"""


def test_a_fork_is_told_to_the_copy_and_harms_nobody():
    done = subprocess.run(
        [sys.executable, "-c", FORK.format(tests=str(TESTS))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said, *rest = done.stdout.splitlines()
    assert f"built in process {os.getpid()}" not in said  # but in the one that forked
    assert "threads do not survive a fork" in said
    assert rest == ["status 0", "closed"]
    assert done.stderr == ""
