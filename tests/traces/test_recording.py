"""A running collector or balancer records into a heat file, and files are read without torch."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from made import HEADER, SHAPE, TOPOLOGY, a_placement, a_window, same_window

import isotherm as iso
from isotherm.traces.recording import record_to
from ranks import run_ranks


def record(rank: int, path: str) -> np.ndarray:
    """Collects for three windows of four steps; rank 0 records. What this rank counted, all experts."""
    topology = iso.Topology(ranks=2, slots_per_rank=6)
    collector = iso.HeatCollector(
        SHAPE, topology, dist.new_group(backend="gloo"), window_steps=4, slices=2, heartbeat_seconds=0.002
    )
    recorder = record_to(path, SHAPE, topology) if rank == 0 else None
    if recorder is not None:
        collector.on_window(recorder)
    rng, heat_LE = np.random.default_rng(rank), np.zeros((3, 8), np.int64)
    for _ in range(12):
        for layer in range(3):
            ids = rng.integers(0, 8, (5, 2))
            np.add.at(heat_LE[layer], ids.ravel(), 1)
            collector.count_ids(layer, torch.from_numpy(ids), num_tokens=5, num_decode=2)
        collector.end_step(num_tokens=5, num_decode=2)
        deadline = time.monotonic() + 20
        while collector.step % 2 == 0 and collector.gathered_step < collector.step:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    collector.close()
    if recorder is not None:
        recorder.close()
    return heat_LE


def test_a_running_collector_records_every_window(tmp_path: Path) -> None:
    path = tmp_path / "some.heat"
    counted = run_ranks(record, 2, tmp_path, str(path))
    trace = iso.read_heat(path)
    assert [window.slice_steps for window in trace] == [(0, 2, 4), (4, 6, 8), (8, 10, 12)]
    assert (trace.heat_LE == sum(counted)).all()
    assert trace.merged().tokens_K.tolist() == [2 * 12 * 3, 2 * 12 * 2]


def balance(rank: int, path: str) -> tuple[list[np.ndarray], list[iso.Placement]]:
    """Serves uneven traffic for six windows of four steps; rank 0 records. The heat of each window, and the
    placement when it came, as this rank saw them."""
    topology = iso.Topology(ranks=2, slots_per_rank=6)
    weights = [{"w": torch.arange(6 * rank, 6 * rank + 6)[:, None] % 8} for _ in range(3)]
    balancer = iso.Balancer(
        SHAPE, topology, group=dist.new_group(backend="gloo"), weights=weights,
        config=iso.Config(mode="full", window_steps=4, heartbeat_seconds=0.002),
    )  # fmt: skip
    heats: list[np.ndarray] = []
    placements: list[iso.Placement] = []
    recorder = None
    if rank == 0:
        recorder = record_to(path, SHAPE, topology, placement=lambda: balancer.placement, model="some")

    def note(window: iso.HeatWindow) -> None:
        heats.append(window.heat_LE)
        placements.append(balancer.placement)
        if recorder is not None:
            recorder(window)

    balancer.on_window(note)
    rng = np.random.default_rng(rank)
    for step in range(24):
        hot = np.array([0, 1]) if step < 12 else np.array([6, 7])
        with balancer.step(num_tokens=40):
            for layer in range(3):
                cold = rng.permuted(np.tile(np.arange(2, 6), (40, 1)), axis=1)[:, :2]
                ids = np.where(rng.random((40, 1)) < 0.7, hot, cold)
                balancer.route(layer, torch.from_numpy(ids))
        deadline = time.monotonic() + 20
        while (step + 1) % 4 == 0 and len(heats) < (step + 1) // 4:
            assert time.monotonic() < deadline
            time.sleep(0.001)
    balancer.close()
    if recorder is not None:
        recorder.close()
        assert recorder.lost == 0
    return heats, placements


def test_a_running_balancer_is_recorded_with_what_its_slots_held(tmp_path: Path) -> None:
    path = tmp_path / "some.heat"
    (heats, placements), (others, _) = run_ranks(balance, 2, tmp_path, str(path))
    trace = iso.read_heat(path)
    assert (trace.header.model, trace.header.topology) == ("some", iso.Topology(2, 6))
    assert len(trace) == len(others) == 6
    for index, window in enumerate(trace):
        assert (window.heat_LE == others[index]).all()
        assert (window.heat_LE == heats[index]).all()
        assert trace.placement_in_force(index) == placements[index]
    assert len(trace.placements) == 1 + sum(a != b for a, b in pairwise(placements))


def test_a_placement_is_recorded_when_it_changed(tmp_path: Path) -> None:
    begun, held = time.time(), iter([a_placement(number) for number in (0, 0, 1, 1, 0)])
    with record_to(tmp_path / "some.heat", SHAPE, TOPOLOGY, placement=lambda: next(held)) as record:
        for number in range(5):
            record(a_window(number))
    trace = iso.read_heat(tmp_path / "some.heat")
    assert begun - 1 <= trace.times[0] <= trace.times[-1] <= time.time() + 1
    assert trace.placements == ((0, a_placement(0)), (2, a_placement(1)), (4, a_placement(0)))
    with record_to(tmp_path / "some.heat", SHAPE, TOPOLOGY, append=True) as record:
        record(a_window(9))
    assert len(iso.read_heat(tmp_path / "some.heat")) == 6


def test_a_full_disk_ends_no_balancing(tmp_path: Path, monkeypatch, caplog) -> None:
    record = record_to(tmp_path / "some.heat", SHAPE, TOPOLOGY)
    record(a_window(0))
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        if len(data) > 100:
            return real(descriptor, data[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, "isotherm"):
        patched.setattr("isotherm.traces.recorder.os.write", full)
        record(a_window(1))
        record(a_window(2))
    assert record.lost == 2
    assert [message.getMessage() for message in caplog.records] == [
        "isotherm: a window of heat was not recorded, others may follow: [Errno 28] No space left on device"
    ]
    record(a_window(3))
    record.close()
    record.close()
    record(a_window(4))
    assert record.lost == 2
    trace = iso.read_heat(tmp_path / "some.heat")
    assert [same_window(*pair) for pair in zip(trace, (a_window(0), a_window(3)), strict=True)] == [
        True,
        True,
    ]
    assert not trace.notes


def test_files_are_read_without_torch(tmp_path: Path) -> None:
    path = tmp_path / "some.heat"
    with iso.HeatWriter(path, HEADER) as writer:
        writer.append(a_window(3))
    assert same_window(iso.read_heat(path)[0], a_window(3))
    program = (
        "import sys, isotherm as iso\n"
        f"trace = iso.read_heat({str(path)!r})\n"
        f"path = {str(tmp_path / 'placement')!r}\n"
        "iso.write_placement(iso.Placement([[0, 1], [1, 0]], 2), path, format='sglang')\n"
        "heavy = {'torch', 'transformers', 'safetensors'} & sys.modules.keys()\n"
        "sys.exit(f'imported too: {sorted(heavy)}' if heavy or len(trace) != 1 else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
