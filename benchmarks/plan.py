"""What each policy reaches, what it moves, and how long it takes: one run, one machine.

    python benchmarks/plan.py
    python benchmarks/plan.py --traces FOLDER     # JSON files {"logical_count": [layers][experts]}

A trace folder needs decode_in1000out1000.json, decode_in500out1500.json and prefill_in1024.json (DeepSeek-V3
statistics as SGLang publishes them). Without one, heat is drawn log-normal as in real models: 58 layers of
256 experts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import isotherm as iso
from isotherm.planner import policies, warm_up

REPEATS = 5
SEEDS = 20
FRESH_RANKS = ((16, 16), (32, 32), (64, 64), (128, 128), (144, 32))


@dataclass(frozen=True)
class Row:
    """One plan, or several of one kind. ``mean`` and ``worst`` are of the layers' balancedness, mean over
    hottest rank; ``cpu_ms`` is the planning thread's CPU time, the median of all runs, as is ``wall_ms``."""

    work: str
    policy: str
    shares: str
    mean: float
    worst: float
    bound: float
    moved: float
    cpu_ms: float
    wall_ms: float


def read_heats(folder: Path | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode heat, prefill heat (far from it), and decode heat of other lengths (near it)."""
    if folder is not None:
        names = ("decode_in1000out1000", "prefill_in1024", "decode_in500out1500")
        heats = [np.array(json.loads((folder / f"{n}.json").read_text())["logical_count"]) for n in names]
        decode, prefill, near = (heat[heat.sum(axis=1) > 0] for heat in heats)
        return decode, prefill, near
    rng = np.random.default_rng(0)
    first, other = rng.normal(0, 0.6, (2, 58, 256))
    return np.exp(first), np.exp(0.6 * first + 0.8 * other), np.exp(0.99 * first + 0.14 * other)


def measure(work: str, policy: str, shares: str, makes: list[Callable[[], iso.Plan]]) -> Row:
    """The row of the plans that ``makes`` make: the mean of their means, the worst of all layers, and the
    moves of the plan that has most."""
    cpu, wall, plans = [], [], []
    for make in makes:
        for _ in range(REPEATS):
            begun = time.thread_time(), time.perf_counter()
            plan = make()
            cpu.append(time.thread_time() - begun[0])
            wall.append(time.perf_counter() - begun[1])
        plans.append(plan)
    return Row(
        work=work,
        policy=policy,
        shares=shares,
        mean=float(np.mean([(1 / plan.imbalance).mean() for plan in plans])),
        worst=float(min((1 / plan.imbalance).min() for plan in plans)),
        bound=float(np.mean([(1 / plan.bound).mean() for plan in plans])),
        moved=max(len(plan.moves) / plan.shares.size for plan in plans),
        cpu_ms=1e3 * statistics.median(cpu),
        wall_ms=1e3 * statistics.median(wall),
    )


def fresh_rows(heat: np.ndarray) -> list[Row]:
    rows = []
    for ranks, redundant in FRESH_RANKS:
        topology = iso.Topology.for_model(experts=256, redundant=redundant, ranks=ranks)
        for policy, shares in (("deepseek", "even"), ("incremental", "even"), ("incremental", "balanced")):
            rows.append(
                measure(
                    f"fresh, EP{ranks}+{redundant}",
                    policy,
                    shares,
                    [lambda t=topology, p=policy, s=shares: iso.plan(heat, t, policy=p, shares=s)],
                )
            )
    return rows


def replan_rows(decode: np.ndarray, prefill: np.ndarray, near: np.ndarray) -> list[Row]:
    changes = {"decode to prefill": (decode, prefill), "prefill to decode": (prefill, decode)}
    changes["near"] = (decode, near)
    rows = []
    for ranks in (32, 16):
        topology = iso.Topology.for_model(experts=256, redundant=ranks, ranks=ranks)
        for name, (before, after) in changes.items():
            start = iso.plan(before, topology, shares="even").placement
            rows += [
                measure(
                    f"{name}, EP{ranks}+{ranks}, to {target}",
                    policy,
                    "balanced",
                    [
                        lambda t=topology, s=start, a=after, p=policy, g=target: iso.plan(
                            a, t, s, policy=p, max_imbalance=1 / g
                        )
                    ],
                )
                for policy in policies()
                for target in ((0.97, 0.95) if policy == "incremental" else (0.97,))
            ]
    return rows


def noise_rows(heat: np.ndarray) -> list[Row]:
    """Log-normal noise on each expert, from a plan at its bound: what shares alone reach, and what moves."""
    rows = []
    for ranks in (32, 16):
        topology = iso.Topology.for_model(experts=heat.shape[1], redundant=ranks, ranks=ranks)
        start = iso.plan(heat, topology).placement
        for sigma in (0.01, 0.05):
            drawn = [np.random.default_rng(seed).lognormal(0, sigma, heat.shape) for seed in range(SEEDS)]
            rows += [
                measure(
                    f"noise of {sigma:.0%}, EP{ranks}+{ranks}",
                    policy,
                    "balanced",
                    [
                        lambda n=noise, t=topology, s=start, p=policy: iso.plan(heat * n, t, s, policy=p)
                        for noise in drawn
                    ],
                )
                for policy in ("static", "incremental")
            ]
    return rows


def print_rows(rows: list[Row]) -> None:
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    table = Table(title=f"Plans of 58 layers x 256 experts ({machine}, numpy {np.__version__})")
    table.add_column("work", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    table.add_column("shares")
    for name in ("mean", "worst layer", "bound", "slots changed", "CPU ms", "wall ms"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.work,
            row.policy,
            row.shares,
            f"{row.mean:.4f}",
            f"{row.worst:.4f}",
            f"{row.bound:.4f}",
            f"{row.moved:.2%}",
            f"{row.cpu_ms:.1f}",
            f"{row.wall_ms:.1f}",
        )
    console = Console()
    # A pipe has no width of its own.
    (console if console.is_terminal else Console(width=130)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, help="folder of trace files; default: drawn heat")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    arguments = parser.parse_args()
    decode, prefill, near = read_heats(arguments.traces)
    warm_up()
    rows = fresh_rows(decode) + replan_rows(decode, prefill, near) + noise_rows(decode)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print_rows(rows)


if __name__ == "__main__":
    main()
