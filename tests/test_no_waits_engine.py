"""Isotherm's own calls under the instrument against waiting, in every state, in real processes."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist

from isotherm import Balancer, Config, HeatCollector, MoEShape, State, Topology
from isotherm.mover import HostTransport
from isotherm.streams import forward_path
from isotherm.testing.wait_meter import no_waits
from ranks import run_ranks

SHAPE = MoEShape(3, 16, 2)
TOPOLOGY = Topology.for_model(experts=16, redundant=4, ranks=2)
MODES = ("off", "count", "observe", "shares", "full")
MAX_STEPS = 3000


class FailsLate(HostTransport):
    """Carries, and then raises on one rank: after the calls that every rank makes."""

    armed = False

    def carry(self, fills, link):
        super().carry(fills, link)
        if FailsLate.armed and link.rank == 1:
            raise RuntimeError("a fault on purpose")


def make_weights(rank):
    return [{"up": torch.full((TOPOLOGY.slots_per_rank, 4), float(rank))} for _ in range(SHAPE.layers)]


def traffic(rank, step, layer):
    """Two experts are hot, and others every 40 steps: there is always something to move."""
    rng = np.random.default_rng([rank, step, layer])
    weights = np.ones(16)
    weights[[(step // 40 + layer) % 16, (step // 40 + 5) % 16]] = 12
    return torch.from_numpy(np.argsort(rng.random((40, 16)) / weights, axis=1)[:, :2].copy())


def forward(call, *args, **kwargs):
    """Calls of the engine's thread that do not mark themselves are marked here."""
    with forward_path():
        return call(*args, **kwargs)


def one_step(balancer, step, mode):
    """One step of the engine, and everything that it may ask between two steps."""
    forward(balancer.set_mode, mode)
    forward(balancer.begin_step, 40, num_decode_tokens=step % 40)
    seen = {balancer.state}
    for layer in range(SHAPE.layers):
        forward(balancer.route, layer, traffic(balancer.rank, step, layer))
        seen.add(balancer.state)
    forward(balancer.end_step)
    forward(balancer.statistics)
    return seen


def seen_by_all(states):
    everywhere = [None, None]
    dist.all_gather_object(everywhere, sorted(state.value for state in states))
    return {State(value) for value in set(everywhere[0]) & set(everywhere[1])}


def run_balancer(rank):
    config = Config(mode="full", window_steps=8, min_gain=0.0, heartbeat_seconds=0.002, moves_in_flight=2)
    balancer = Balancer(
        SHAPE,
        TOPOLOGY,
        group=dist.new_group(backend="gloo"),
        weights=make_weights(rank),
        config=config,
        transport=FailsLate,
    )
    seen, step, modes = set(), 0, 0
    with no_waits() as meter:
        while modes < 2 * len(MODES) and step < MAX_STEPS:
            # Once every state without a failure was seen, one is provoked, and then every mode tried.
            modes += State.DEGRADED in seen
            seen |= one_step(balancer, step, MODES[modes % len(MODES)] if modes else "full")
            step += 1
            if step % 4 == 0:
                time.sleep(0.005)
                common = seen_by_all(seen)
                FailsLate.armed = {State.OBSERVING, State.MOVING} <= common
            if State.DEGRADED in seen:
                seen = seen | ({State.DEGRADED} & seen_by_all(seen))
    planned = balancer.statistics().plans
    balancer.close()
    return seen, meter.calls, meter.waits, planned, step


def test_a_balancer_waits_in_no_state_and_no_mode(tmp_path):
    results = run_ranks(run_balancer, 2, tmp_path)
    seen = set.union(*(states for states, *_ in results))
    assert seen == set(State)
    for states, calls, waits, planned, steps in results:
        assert waits == []
        assert State.DEGRADED in states
        assert planned
        assert calls == steps * (SHAPE.layers + 4)


def run_collector(rank, source, inline):
    """Windows are asked for in each step; ranks are as far apart as they like."""
    collector = HeatCollector(
        SHAPE,
        TOPOLOGY,
        dist.new_group(backend="gloo"),
        source=source,
        window_steps=4,
        slices=2,
        inline=inline,
        heartbeat_seconds=0.002,
    )
    steps = 100
    windows = []
    counts = torch.arange(TOPOLOGY.slots_per_rank)
    try:
        with no_waits() as meter:
            for step in range(steps):
                for layer in range(SHAPE.layers):
                    if source == "ids":
                        forward(collector.count_ids, layer, traffic(rank, step, layer), num_decode=8)
                    else:
                        forward(collector.count, layer, counts, cumulative=step % 2 == 0, kind="decode")
                forward(collector.end_step, num_tokens=40, num_decode=8)
                windows += filter(None, [forward(collector.poll)])
                time.sleep(0.001 * (step % 10 == rank))
    except AssertionError:
        assert inline
    # One rank may have made all its steps before the other began.
    deadline = time.monotonic() + 20
    while not windows and time.monotonic() < deadline:
        time.sleep(0.005)
        windows += filter(None, [collector.poll()])
    collector.close()
    return len(windows), meter.calls, meter.waits


@pytest.mark.parametrize("source", ["ids", "received"])
def test_a_collector_never_waits(tmp_path, source):
    for windows, calls, waits in run_ranks(run_collector, 2, tmp_path, source, False):
        assert waits == []
        assert calls == 100 * (SHAPE.layers + 2)
        assert windows


def test_a_collector_in_line_waits_and_is_caught(tmp_path):
    for _, calls, waits in run_ranks(run_collector, 2, tmp_path, "ids", True):
        assert calls == 100 * (SHAPE.layers + 2)
        kinds = {wait.what for wait in waits}
        assert {"count_wait", "ProcessGroup.allgather", "Work.wait"} <= kinds
        assert all("/isotherm/" in wait.where for wait in waits)


ALONE = """
import torch
from isotherm import HeatCollector, MoEShape, Topology
from isotherm.streams import forward_path
from isotherm.testing.wait_meter import no_waits

shape = MoEShape(3, 16, 2)
collector = HeatCollector(shape, Topology(ranks=1, slots_per_rank=16), None, window_steps=10**6)
ids = torch.arange(64).remainder(16).reshape(32, 2)

def step():
    for layer in range(3):
        with forward_path():
            collector.count_ids(layer, ids)
    collector.end_step(num_tokens=32)

step()
with no_waits() as meter:
    for _ in range(200):
        step()
print(meter.calls, meter.switches)
"""


def test_a_rank_alone_keeps_its_core():
    """The second meter: no other thread has anything to do, so every switch would be a wait of ours."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the system does not count by thread")
    done = subprocess.run(
        [sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    calls, switches = map(int, done.stdout.split())
    assert calls == 200 * 4
    assert switches <= 4
