"""How balancers end: twice in a process, not at all, after a fork."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from isotherm import Balancer, Config, MoEShape, Topology
from ranks import LOOPBACK, PRELOADED, START, run_ranks

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
    failures = [balancer.statistics().failures.total for balancer in end.kept]
    dist.barrier()  # who ends first leaves the other without a link
    return failures


def test_a_balancer_that_is_never_closed_ends_with_the_process(tmp_path):
    assert run_ranks(end, 2, tmp_path) == [[0, 0]] * 2  # and exit codes 0


def leave(rank, folder):
    """Serves for a while. Then nothing is closed, no group destroyed, and rank 1 is stopped."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    leave.kept = serve("left")
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    rounds = -1
    while leave.kept.statistics().rounds > rounds:  # until the heartbeat waits for the other
        rounds = leave.kept.statistics().rounds
        time.sleep(0.2)


LEAVE = """
import sys
sys.path.insert(0, {tests!r})
import test_ending

test_ending.leave(0, {folder!r})
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="the system has no SIGSTOP")
def test_a_program_that_closes_nothing_ends_well_and_says_nothing(tmp_path):
    """Its heartbeat is inside of a call that never returns: rank 1, a daemon, is stopped."""
    context = multiprocessing.get_context(START)
    context.set_forkserver_preload(PRELOADED)
    stopped = context.Process(target=leave, args=(1, str(tmp_path)), daemon=True)
    stopped.start()
    program = LEAVE.format(tests=str(TESTS), folder=str(tmp_path))
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=False
        )
    finally:
        stopped.kill()
        stopped.join()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FORK = """
import os, sys, warnings
sys.path.insert(0, {tests!r})
import torch
from isotherm import Balancer, HeatCollector, IsothermError, MoEShape, Topology
from memory_link import memory_links

shape, topology = MoEShape(1, 4, 1), Topology(ranks=1, slots_per_rank=4)
balancer = Balancer(shape, topology, group=memory_links(1)[0], weights=None)
collector = HeatCollector(shape, topology, memory_links(1)[0])
warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of any fork beside threads
child = os.fork()
if child == 0:
    for call in lambda: balancer.begin_step(4), lambda: collector.end_step(num_tokens=4):
        try:
            call()
        except IsothermError as error:
            print(error, flush=True)
    balancer.close()
    collector.close()
    os._exit(0)
_, status = os.waitpid(child, 0)
print("status", status)
with balancer.step(4):
    balancer.route(0, torch.arange(4)[:, None])
balancer.close()
collector.end_step(num_tokens=4)
collector.close()
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
    *said, status, closed = done.stdout.splitlines()
    for each, what in zip(said, ("balancer", "collector"), strict=True):
        assert f"this {what} was built" in each
        assert f"built in process {os.getpid()}" not in each  # but in the one that forked
        assert "threads do not survive a fork" in each
    assert (status, closed) == ("status 0", "closed")
    assert done.stderr == ""
