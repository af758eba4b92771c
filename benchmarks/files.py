"""Large files through the command line: seconds and memory of each command, in a process of its own.

    python benchmarks/files.py
    python benchmarks/files.py --windows 1000 --gigabytes 0.1

Makes heat of DeepSeek-V3's shape (58 layers of 256 experts, traffic that changes halfway) and ids of
experts per token in a temporary folder: 1.2 and 1 GB, which takes some minutes. Then inspects both, and
replays the heat on 32 ranks with 32 redundant slots. What is asked: a minute for each file, two for the
replay, under 1 GB of memory, on two cores. CPU seconds are those of all threads: what is waited for is
less, where there are two cores, and more where others use them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LAYERS, EXPERTS, TOP_K = 58, 256, 8
BLOCK_TOKENS = 1 << 14


@dataclass(frozen=True)
class Cost:
    """Of one command: seconds waited, CPU seconds of all its threads, and the most memory it held, in MiB."""

    wall_seconds: float
    cpu_seconds: float
    peak_mib: float


def measure(*arguments: object) -> Cost:
    """Runs ``isotherm`` with these arguments.

    Raises:
        RuntimeError: it failed; the message has what it said.
    """
    command = [sys.executable, "-m", "isotherm", *map(str, arguments)]
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed: {said.read().decode(errors='replace')}")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB here
    peak_mib = usage.ru_maxrss * unit / 2**20
    return Cost(time.perf_counter() - begun, usage.ru_utime + usage.ru_stime, peak_mib)


def write_ids(path: Path, gigabytes: float) -> None:
    """Ids uint8 [tokens, layers, picks], skewed, one block of tokens again and again."""
    tokens = max(1, round(gigabytes * 1e9 / (LAYERS * TOP_K * BLOCK_TOKENS))) * BLOCK_TOKENS
    rng = np.random.default_rng(0)
    skewed = rng.lognormal(0, 0.6, EXPERTS)
    block = rng.choice(EXPERTS, (BLOCK_TOKENS, LAYERS, TOP_K), p=skewed / skewed.sum()).astype(np.uint8)
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (tokens, LAYERS, TOP_K)}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(tokens // BLOCK_TOKENS):
            file.write(block.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=10_000, help="windows of heat")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="ids of experts per token")
    parser.add_argument("--scenario", default="abrupt", help="how traffic changes: see isotherm synth --help")
    asked = parser.parse_args()
    cluster = ("--ranks", 32, "--nodes", 4, "--redundant", 32)
    with tempfile.TemporaryDirectory() as folder:
        heat, ids = Path(folder, "made.heat"), Path(folder, "ids.npy")
        measure("synth", heat, "--windows", asked.windows, "--scenario", asked.scenario)
        write_ids(ids, asked.gigabytes)
        measure("simulate", "sample")  # compiles what is not compiled yet
        print(f"{'':38} {'seconds':>9} {'CPU s':>9} {'MiB':>7}")
        for title, arguments in (
            (f"inspect {ids.stat().st_size / 1e9:.2f} GB of ids", ("inspect", ids, "--format", "token-ids")),
            (f"inspect {asked.windows:,} windows, {heat.stat().st_size / 1e9:.2f} GB", ("inspect", heat)),
            (f"simulate {asked.windows:,} windows, {asked.scenario}", ("simulate", heat, *cluster)),
        ):
            cost = measure(*arguments)
            print(f"{title:38} {cost.wall_seconds:9.1f} {cost.cpu_seconds:9.1f} {cost.peak_mib:7.0f}")


if __name__ == "__main__":
    main()
