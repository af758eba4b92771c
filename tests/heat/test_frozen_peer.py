"""One rank of three frozen by SIGSTOP: nobody waits for it, nothing is lost, and all resumes by itself."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.distributed as dist

from isotherm import HeatCollector, MoEShape, Topology
from isotherm.control import GroupLink
from isotherm.testing.wait_meter import no_waits
from ranks import run_ranks

SHAPE = MoEShape(2, 8, 2)
TOPOLOGY = Topology(ranks=3, slots_per_rank=4)
WINDOW, SLICES = 8, 2
STEP_SECONDS = 0.02
TAIL_STEPS = 10 * WINDOW
FROZEN = 1
CALL_SECONDS = 1.5  # generous: all ranks and their threads share the machine's cores
BATCHES = 13

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="the system has no SIGSTOP")


@dataclass(frozen=True)
class Freeze:
    """When rank FROZEN is stopped, and for how long."""

    when: str
    seconds: float


def freeze(seconds):
    """Stops this process, all its threads; another one lets it go on."""
    wake = f"import os, signal, time; time.sleep({seconds}); os.kill({os.getpid()}, signal.SIGCONT)"
    subprocess.Popen([sys.executable, "-c", wake])
    os.kill(os.getpid(), signal.SIGSTOP)


def freeze_in_gather(seconds):
    """Stops this process inside its fifth sum, where the others wait for it."""
    real, calls = GroupLink.all_reduce, []

    def all_reduce(*args):
        calls.append(1)
        if len(calls) == 5:
            freeze(seconds)
        return real(*args)

    GroupLink.all_reduce = all_reduce


def batch(rank, layer, step):
    """One of a few batches of ids [tokens, 2], and one of a few counts per local slot."""
    rng = np.random.default_rng([rank, layer, step % BATCHES])
    return torch.from_numpy(rng.integers(0, 8, (16, 2))), torch.from_numpy(rng.integers(0, 9, 4))


def heat_of(rank, layer, step, source):
    ids, counts = batch(rank, layer, step)
    if source == "ids":
        return np.bincount(ids.numpy().ravel(), minlength=8)
    experts = (rank * 4 + np.arange(4)) % 8
    return np.bincount(experts, weights=counts.numpy(), minlength=8).astype(np.int64)


class Engine:
    """Makes steps without a collective of its own, and times its calls of the collector."""

    def __init__(self, rank, source):
        group = dist.new_group(backend="gloo")
        self.collector = HeatCollector(
            SHAPE, TOPOLOGY, group, source=source, window_steps=WINDOW, slices=SLICES
        )
        self.batches = [[batch(rank, layer, step) for layer in range(2)] for step in range(BATCHES)]
        self.source = source
        self.windows = []
        self.longest = 0.0

    def step(self):
        begun = time.perf_counter()
        for layer, (ids, counts) in enumerate(self.batches[self.collector.step % BATCHES]):
            if self.source == "ids":
                self.collector.count_ids(layer, ids, num_decode=5)
            else:
                self.collector.count(layer, counts, kind="decode")
        self.collector.end_step(num_tokens=16, num_decode=5)
        window = self.collector.poll()
        self.longest = max(self.longest, time.perf_counter() - begun)
        self.windows += [window] if window is not None else []

    def serve(self, seconds):
        """Steps at a pace of its own, whatever the others do."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.step()
            time.sleep(STEP_SECONDS)

    def catch_up(self):
        """Every rank ends the same steps; then some more, each snapshot of which is gathered."""
        steps = [None] * 3
        dist.all_gather_object(steps, self.collector.step)
        last = max(steps) // WINDOW * WINDOW + WINDOW
        while self.collector.step < last:
            self.step()
        while self.collector.step < last + TAIL_STEPS:
            self.step()
            if self.collector.step % (WINDOW // SLICES) == 0:
                self.await_gather(2.0)
        self.await_gather(30.0)
        return last + TAIL_STEPS

    def await_gather(self, seconds):
        deadline = time.monotonic() + seconds
        while self.collector.gathered_step < self.collector.step and time.monotonic() < deadline:
            time.sleep(0.005)


def serve(rank, source, plan):
    engine = Engine(rank, source)
    is_frozen = rank == FROZEN
    if is_frozen and plan.when == "gather":
        freeze_in_gather(plan.seconds)
    begun = time.monotonic()
    with no_waits() as meter:
        if is_frozen and plan.when == "start":
            freeze(plan.seconds)
        engine.serve(plan.seconds + 2 if plan.when != "close" else 1)
        served, skipped = time.monotonic() - begun, engine.collector.skipped_snapshots
        steps = engine.catch_up()
    gathered = engine.collector.gathered_step
    engine.windows += iter(engine.collector.poll, None)
    if is_frozen and plan.when == "close":
        freeze(plan.seconds)
    closing = time.monotonic()
    engine.collector.close(60)
    return {
        "windows": [(w.slice_steps, w.heat_KSLE.sum((0, 1)), w.tokens_K) for w in engine.windows],
        "longest": engine.longest,
        "waits": meter.waits,
        "skipped": skipped,
        "steps": steps,
        "gathered": gathered,
        "served": served,
        "closing": time.monotonic() - closing,
    }


def check_exact(results, source):
    """Equal windows on all ranks, one behind the other, with every token of every step in them."""
    heat_TLE = np.array(
        [
            [sum(heat_of(rank, layer, step, source) for rank in range(3)) for layer in range(2)]
            for step in range(BATCHES)
        ]
    )
    expected = results[0]["windows"]
    for result in results:
        assert result["gathered"] == result["steps"] == results[0]["steps"]
        assert [spans for spans, *_ in result["windows"]] == [spans for spans, *_ in expected]
        end = 0
        for (start, *_, stop), heat_LE, tokens_K in result["windows"]:
            assert start == end
            end = stop
            assert (heat_LE == heat_TLE[np.arange(start, stop) % BATCHES].sum(0)).all()
            assert tokens_K.tolist() == [(stop - start) * 3 * 11, (stop - start) * 3 * 5]
        assert result["steps"] - WINDOW < end <= result["steps"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("source", "plan"),
    [
        ("ids", Freeze("gather", 30)),
        ("received", Freeze("gather", 3)),
        ("received", Freeze("start", 3)),
        ("ids", Freeze("close", 3)),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.when}-{value.seconds}s",
)
def test_nobody_waits_for_a_frozen_rank_and_nothing_is_lost(tmp_path, source, plan):
    results = run_ranks(serve, 3, tmp_path, source, plan, timeout=200)
    check_exact(results, source)
    others = [result for rank, result in enumerate(results) if rank != FROZEN]
    for rank, result in enumerate(results):
        print(f"longest step of rank {rank}: {1000 * result['longest']:.1f} ms of Isotherm's calls")
        assert result["waits"] == []
    for result in others:
        assert result["longest"] < CALL_SECONDS
        if plan.when == "close":
            assert result["closing"] >= plan.seconds - 1  # the one call that may wait for a peer
        else:
            assert result["skipped"] > 0
            assert results[FROZEN]["served"] >= plan.seconds
            spans = [stop - start for (start, *_, stop), *_ in result["windows"]]
            assert max(spans) > 2 * WINDOW  # what was skipped came with the next
