"""Plans made through vLLM's own contract, by the policy that vLLM comes with and by ours.

    make test-engines    # once: makes .venv-engines
    .venv-engines/bin/python benchmarks/vllm_plans.py --traces FOLDER

FOLDER as for `isotherm bench plan`; without it, heat is drawn. Each policy begins at vLLM's first placement
and is handed one window of traffic after the other, with what its own last plan left in the slots. Tokens are
split evenly over replicas, as vLLM does. Times are CPU time of the thread, the median of three calls.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from vllm.distributed.eplb.policy import DefaultEplbPolicy

from isotherm import Topology
from isotherm.bench.plan_heat import Heats, read_heats
from isotherm.engines.vllm.placing import warm_up
from isotherm.engines.vllm.policy import EplbPlanner
from isotherm.placement import Placement, rank_loads
from isotherm.window import layer_imbalance

GROUPS = 8
"""Expert groups of DeepSeek-V3's router. Where nodes divide them, vLLM's policy keeps a group on one node."""
NOISE = 0.02
"""Of each expert's heat from one window of the same traffic to the next."""
TOKENS = 1_000_000
"""Token-expert pairs of a layer in a window."""

Ask = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class Outcome:
    """One plan: balancedness before and after it (mean over layers, and the worst), the part of the slots
    that changed, the part that came from another rank, and the CPU time that planning took."""

    before: float
    after: float
    worst: float
    changed: float
    crossed: float
    milliseconds: float


def windows(heats: Heats) -> Iterator[tuple[str, np.ndarray]]:
    """Loads int64 [layers, experts], by what happened to the traffic."""
    rng = np.random.default_rng(0)
    for name, heat_LE in (
        ("first traffic", heats.first),
        ("the same", heats.first),
        ("a little else", heats.near),
        ("decode to prefill", heats.far),
        ("and back", heats.first),
    ):
        noisy_LE = heat_LE * rng.lognormal(0, NOISE, heat_LE.shape)
        yield name, (TOKENS * noisy_LE / noisy_LE.sum(axis=1, keepdims=True)).astype(np.int64)


def outcomes(ask: Ask, heats: Heats, topology: Topology) -> Iterator[tuple[str, Outcome]]:
    experts = heats.first.shape[1]
    held_LP = np.tile(np.arange(topology.slots) % experts, (len(heats.first), 1))
    for name, load_LE in windows(heats):
        arguments = (torch.from_numpy(load_LE), topology.slots, GROUPS, topology.nodes, topology.ranks)
        seconds = []
        for _ in range(3):
            begun = time.thread_time()
            goal_LP = ask(*arguments, torch.from_numpy(held_LP)).numpy()
            seconds.append(time.thread_time() - begun)
        before, after = balance(held_LP, load_LE, topology), balance(goal_LP, load_LE, topology)
        yield (
            name,
            Outcome(
                before=float(before.mean()),
                after=float(after.mean()),
                worst=float(after.min()),
                changed=float((goal_LP != held_LP).mean()),
                crossed=crossings(held_LP, goal_LP, topology),
                milliseconds=1e3 * median(seconds),
            ),
        )
        held_LP = goal_LP


def balance(slots_LP: np.ndarray, load_LE: np.ndarray, topology: Topology) -> np.ndarray:
    """Mean over hottest rank of each layer, float64 [layers]."""
    placement = Placement(slots_LP.astype(np.int32), load_LE.shape[1])
    balance_L: np.ndarray = 1 / layer_imbalance(
        rank_loads(load_LE, placement, placement.even_shares(), topology)
    )
    return balance_L


def crossings(held_LP: np.ndarray, goal_LP: np.ndarray, topology: Topology) -> float:
    """The part of the slots whose expert their rank did not hold before: weights over the network."""
    held_LGS, goal_LGS = (each.reshape(len(each), topology.ranks, -1) for each in (held_LP, goal_LP))
    is_there = (goal_LGS[..., :, None] == held_LGS[..., None, :]).any(axis=3)
    return float(1 - is_there.mean())


def table_of(heats: Heats, topology: Topology) -> Table:
    ours = EplbPlanner(DefaultEplbPolicy, agree=lambda goal_LP: goal_LP is not None)
    redundant = topology.slots - heats.first.shape[1]
    title = f"{topology.ranks} ranks, {topology.nodes} nodes, {redundant} redundant experts; {heats.source}"
    table = Table(
        "traffic", "policy", "balance before", "after", "worst layer", title=title, title_justify="left"
    )
    for name in ("slots changed", "from another rank", "CPU ms"):
        table.add_column(name, justify="right")
    asked: dict[str, Any] = {"vLLM": DefaultEplbPolicy.rebalance_experts, "Isotherm": ours.rebalance_experts}
    runs = {policy: list(outcomes(ask, heats, topology)) for policy, ask in asked.items()}
    for row, (name, _) in enumerate(runs["vLLM"]):
        for policy, outcome in ((policy, run[row][1]) for policy, run in runs.items()):
            shares = [f"{value:.3f}" for value in (outcome.before, outcome.after, outcome.worst)]
            moved = [f"{100 * value:.1f} %" for value in (outcome.changed, outcome.crossed)]
            table.add_row(name, policy, *shares, *moved, f"{outcome.milliseconds:.0f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--traces", type=Path)
    try:
        heats = read_heats(parser.parse_args().traces)
    except ValueError as error:
        parser.error(str(error))
    warm_up()
    console = Console(width=130)
    console.print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}")
    for ranks, nodes in ((32, 1), (32, 4), (16, 2)):
        topology = Topology.for_model(experts=heats.first.shape[1], redundant=ranks, ranks=ranks, nodes=nodes)
        console.print(table_of(heats, topology))


if __name__ == "__main__":
    main()
