"""A running collector records into a heat file, and files are read without torch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from made import HEADER, SHAPE, a_window, same_window

import isotherm as iso
from ranks import run_ranks


def record(rank: int, path: str) -> np.ndarray:
    """Collects for three windows of four steps; rank 0 records. What this rank counted, all experts."""
    topology = iso.Topology(ranks=2, slots_per_rank=6)
    collector = iso.HeatCollector(
        SHAPE, topology, dist.new_group(backend="gloo"), window_steps=4, slices=2, heartbeat_seconds=0.002
    )
    writer = iso.HeatWriter(path, iso.HeatHeader.of(SHAPE, topology)) if rank == 0 else None
    if writer is not None:
        collector.on_window(writer.append)
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
    if writer is not None:
        writer.close()
    return heat_LE


def test_a_running_collector_records_every_window(tmp_path: Path) -> None:
    path = tmp_path / "some.heat"
    counted = run_ranks(record, 2, tmp_path, str(path))
    trace = iso.read_heat(path)
    assert [window.slice_steps for window in trace] == [(0, 2, 4), (4, 6, 8), (8, 10, 12)]
    assert (trace.heat_LE == sum(counted)).all()
    assert trace.merged().tokens_K.tolist() == [2 * 12 * 3, 2 * 12 * 2]


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
