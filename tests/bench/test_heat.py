"""The benchmark of heat: that it runs, says what it says, and would notice. Never a time."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist

from isotherm.balancer import Balancer
from isotherm.bench.arms import balancer_arm, counting_arm, ids_arm, plain_arm, received_arm
from isotherm.bench.clocks import has_thread_clocks, our_threads, thread_cpu_ns
from isotherm.bench.echo import EchoLink
from isotherm.bench.engine import EP2, TOKENS, SyntheticEngine
from isotherm.bench.exposed import StepTimings
from isotherm.bench.ranks import run_ranks
from isotherm.bench.side import side_section
from isotherm.bench.traffic import EP32, SHAPE, Traffic
from isotherm.bench.turns import take_turns
from isotherm.bench.wire import LIMIT_BYTES, collector_bytes, measure_wire, measure_wire_on_ranks
from isotherm.config import Config
from isotherm.heat import HeatCollector
from isotherm.topology import MoEShape

REPORT_TITLES = [
    "Map and count, CPU time of the main thread per layer",
    "CPU time of side threads between two snapshots",
    "Engine steps: collection on minus off",
    "One gather: what it takes from main",
    "Bytes that a rank hands over",
    "Memory for heat and tables",
]


@pytest.mark.timeout(300)
def test_a_quick_run_has_every_table_and_holds_each_figure_to_its_limit():
    command = [sys.executable, "-m", "isotherm", "bench", "heat", "--quick", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [section["title"] for section in report["sections"]] == REPORT_TITLES
    assert report["machine"]["torch"] == torch.__version__
    targets = {target["name"]: target for target in report["targets"]}
    assert len(targets) == len(report["targets"])
    for target in report["targets"]:
        assert target["ok"] == (target["value"] <= target["limit"]), target
    for tokens, limit in (("1 token", 2), ("128 tokens", 1), ("1,024 tokens", 1), ("8,192 tokens", 1)):
        assert targets[f"Balancer.route / torch.take at {tokens}"]["limit"] == limit
    figures = [figure for section in report["sections"] for figure in section["figures"]]
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in figures)
    assert all(figure["samples"] > 0 for figure in figures)
    _check_tables(done.stdout)


def _check_tables(text):
    shown = subprocess.run(
        [sys.executable, "-m", "isotherm.bench", "/dev/stdin"],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    words = " ".join(shown.stdout.split())  # a title may be wider than its table
    for title in REPORT_TITLES:
        assert title in words
    short = [target["name"] for target in json.loads(text)["targets"] if not target["ok"]]
    assert [line for line in short if f"falls short: heat: {line}" not in shown.stdout] == []
    assert shown.stdout.count("falls short") == len(short)


def test_what_one_rank_of_many_hands_over_is_what_it_hands_over_to_real_peers():
    real = run_ranks(measure_wire_on_ranks)
    assert real == collector_bytes(EchoLink(2), EP2)
    section = measure_wire(real)
    heat = 2 * 2 * 4 * SHAPE.layers * SHAPE.experts
    assert heat + 16 * 1024 == LIMIT_BYTES
    # Headers of two rounds, tokens of two kinds and slices, and the loads.
    idle = section.figure("EP32", "received, an idle round").value
    loads = 4 * SHAPE.layers * EP32.slots_per_rank
    assert section.figure("EP32", "received, a window").value == heat + 2 * 2 * 4 + loads + 2 * idle
    assert section.figure("EP32", "mapped, a window").value > heat + 4 * SHAPE.layers * EP32.slots


def test_a_side_thread_that_works_is_seen():
    if not has_thread_clocks():
        pytest.skip("this system does not show the CPU time of one thread to another")
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            pass

    worker = threading.Thread(target=spin, name="isotherm-worker", daemon=True)
    worker.start()
    try:
        before = thread_cpu_ns(our_threads()["worker"])
        deadline = time.monotonic() + 30
        while thread_cpu_ns(worker) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert thread_cpu_ns(worker) > before
    finally:
        stop.set()
        worker.join()


def test_side_threads_are_held_to_nothing_and_only_where_steps_were_seen():
    quiet, busy = (side_section(16, {"heat": 0, "heartbeat": ns}, [5]) for ns in (0, 1))
    assert [target.ok for target in (*quiet.targets, *busy.targets)] == [True, False]
    assert side_section(0, {}, [5]).targets == ()


def test_traffic_chooses_distinct_experts_as_hot_as_it_says():
    shape = MoEShape(3, 32, 4)
    traffic = Traffic(seed=5, shape=shape)
    batches = traffic.batches(4000, 6)
    for batch, ids in enumerate(batches):
        assert ids.shape == (4000, 4)
        assert ids.dtype == torch.int64
        assert (ids.sort(dim=1).values.diff(dim=1) > 0).all()
        counts = torch.bincount(ids.reshape(-1), minlength=32).numpy()
        assert np.corrcoef(counts, traffic.heat_LE[batch % 3])[0, 1] > 0.9
        assert np.corrcoef(counts, traffic.heat_LE[(batch + 1) % 3])[0, 1] < 0.8
    assert not torch.equal(batches[0], batches[3])


def received_in(steps):
    """What an engine's slots received in its first steps, [layers, slots]."""
    engine = SyntheticEngine(rank=0, quick=True)
    total_LS = np.zeros((SHAPE.layers, EP2.slots_per_rank), np.int64)
    for _ in range(steps):
        batch = engine.begin_step()
        total_LS += torch.stack(engine.received[batch : batch + SHAPE.layers]).numpy()
    return total_LS


def test_the_arm_of_received_counts_counts_every_layer():
    engine = SyntheticEngine(rank=0, quick=True)
    collector = HeatCollector(SHAPE, EP2, EchoLink(2), source="received", window_steps=4, slices=1)
    arm = received_arm("on", collector, engine, snapshot_steps=4)
    arm.run_steps(engine, 7)
    arm.settle()
    window = collector.poll()
    assert np.array_equal(window.slot_load_LGS[:, 0], received_in(4))
    assert collector.poll() is None
    collector.close()


def test_counting_alone_takes_no_snapshot_and_loses_nothing():
    engine = SyntheticEngine(rank=0, quick=True)
    collector = HeatCollector(SHAPE, EP2, EchoLink(2), source="received", window_steps=4, slices=1)
    counting_arm("counting", collector, engine).run_steps(engine, 5)
    assert collector.gathered_step == 0
    arm = received_arm("on", collector, engine, snapshot_steps=4)
    arm.run_steps(engine, 3)
    arm.settle()
    window = collector.poll()
    assert window.slice_steps == (0, 8)
    assert np.array_equal(window.slot_load_LGS[:, 0], received_in(8))
    collector.close()


def test_the_arm_of_ids_counts_every_layer():
    engine = SyntheticEngine(rank=0, quick=True)
    collector = HeatCollector(SHAPE, EP2, EchoLink(2), source="ids", window_steps=2, slices=1)
    arm = ids_arm("on", collector, engine, snapshot_steps=2)
    arm.run_steps(engine, 2)
    arm.settle()
    assert (collector.poll().heat_LE.sum(axis=1) == 2 * 2 * TOKENS * SHAPE.top_k).all()
    collector.close()


def test_turns_go_forward_and_back_and_average_over_the_ranks():
    order, samples = run_ranks(_take_three_turns)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert {name: values.tolist() for name, values in samples.items()} == {
        "a": [[3.5], [4.5], [7.5]],
        "b": [[2.5], [5.5], [6.5]],
    }


def _take_three_turns():
    order = []

    def measure(arm):
        order.append(arm.name)
        return (len(order) - 1 + dist.get_rank(),)

    return order, take_turns([plain_arm("a"), plain_arm("b")], 3, measure)


def test_the_arm_of_a_balancer_counts_only_when_it_is_on():
    engine = SyntheticEngine(rank=0, quick=True)
    config = Config(mode="off", window_steps=4, slices=1)
    balancer = Balancer(SHAPE, EP2, group=EchoLink(2), weights=None, config=config)
    windows = []
    balancer.on_window(windows.append)
    for name, mode in (("off", "off"), ("on", "observe"), ("count", "count")):
        arm = balancer_arm(name, balancer, engine, mode=mode, snapshot_steps=4)
        arm.prepare()
        arm.run_steps(engine, 4)
        arm.settle()
    assert [window.tokens_K.tolist() for window in windows] == [[0, 2 * 4 * TOKENS]]
    heat_L = windows[0].heat_LE.sum(axis=1)
    assert (heat_L == 2 * 4 * TOKENS * SHAPE.top_k).all()
    balancer.close()


def test_a_rank_that_fails_is_told_and_no_process_stays():
    with pytest.raises(RuntimeError, match=r"rank 1 of the benchmark failed: (?s:.*)ValueError: of rank 1"):
        run_ranks(_fail_on, 1)
    assert multiprocessing.active_children() == []


def test_a_rank_that_dies_is_told():
    with pytest.raises(RuntimeError, match="rank 0 of the benchmark failed: it ended without a word"):
        run_ranks(_die_on, 0)
    assert multiprocessing.active_children() == []


def _fail_on(rank):
    if dist.get_rank() == rank:
        raise ValueError(f"of rank {rank}")
    dist.barrier()


def _die_on(rank):
    if dist.get_rank() == rank:
        os._exit(3)
    time.sleep(60)


def test_a_gather_is_spread_over_the_steps_between_two_snapshots():
    # Blocks of 4 steps: 8 more per step is 32 for the gather, a quarter per step where 128 share it.
    of = {name: np.full((3, 2), value) for name, value in (("off", 10.0), ("counting", 12.0), ("on", 20.0))}
    assert StepTimings(of).as_by_default.tolist() == [[2.25, 2.25]] * 3
