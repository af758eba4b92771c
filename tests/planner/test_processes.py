"""Plans beside other users of numba, and after a fork."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, threading
import numba, numpy as np
import isotherm as iso

@numba.njit(parallel=True)
def foreign(numbers):
    for i in numba.prange(len(numbers)):
        numbers[i] += 1

def work():
    while not done.is_set():
        foreign(np.zeros(10_000))

heat, topology = np.random.default_rng(0).lognormal(0, 1, (8, 32)), iso.Topology(ranks=8, slots_per_rank=5)
current = iso.plan(heat, topology).placement
plan = lambda: iso.plan(heat[:, ::-1], topology, current).to_bytes()
alone, done, laps = plan(), threading.Event(), 0
foreign(np.zeros(10))
other = threading.Thread(target=work)
other.start()
assert {plan() for _ in range(20)} == {alone}
child = os.fork()
if child == 0:
    os._exit(0 if plan() == alone else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
done.set()
other.join()
assert plan() == alone
"""


@pytest.mark.skipif(sys.platform != "linux", reason="fork beside threads is defined on Linux alone")
def test_plans_beside_a_foreign_parallel_region_and_after_a_fork():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
