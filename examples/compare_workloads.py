"""Compares all policies where traffic jumps from one measured workload to the next.

    python examples/compare_workloads.py --traces FOLDER --ranks 32 --redundant 32

FOLDER holds one JSON file per workload, {"logical_count": [layers][experts]}, as SGLang publishes them; those
of DeepSeek-V3 are attached to sgl-project/sglang issue 6017. Each is a window: planned on one, served on the
next, in the order of their names, and round again to the first.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

import isotherm as iso
from isotherm.cli.replay_pictures import draw_policies
from isotherm.replay import Cluster
from isotherm.replay.comparison import Comparison, compare_policies


def read_workloads(folder: Path) -> list[iso.HeatWindow]:
    """One window for each file, a step long, and the first again at the end."""
    paths = sorted(folder.glob("*.json"))
    if len(paths) < 2:
        raise SystemExit(f"{folder}: {len(paths)} JSON files; there must be at least two workloads")
    windows = [iso.read_heat(path)[0] for path in [*paths, paths[0]]]
    return [replace(window, slice_steps=(step, step + 1)) for step, window in enumerate(windows)]


def print_table(found: Comparison) -> None:
    table = Table(title=f"{found.windows - 1} changes of workload, served by {found.engine}")
    for name in ("policy", "balancedness p50", "worst", "slots moved a plan"):
        table.add_column(name)
    unbalanced = [1 / window.unbalanced for window in found.chosen.windows]
    table.add_row("(no plan)", f"{median(unbalanced):.3f}", f"{min(unbalanced):.3f}", "0")
    for row in found.rows:
        table.add_row(
            row.policy, f"{row.balancedness:.3f}", f"{row.worst_balancedness:.3f}", f"{row.moved_part:.1%}"
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, required=True, help="folder of JSON files, a workload each")
    parser.add_argument("--ranks", type=int, default=32)
    parser.add_argument("--redundant", type=int, default=32)
    parser.add_argument("--out", type=Path, help="draw slots moved against balancedness")
    arguments = parser.parse_args()
    windows = read_workloads(arguments.traces)
    topology = iso.Topology.for_model(
        experts=windows[0].heat_LE.shape[1], redundant=arguments.redundant, ranks=arguments.ranks
    )
    found = compare_policies(windows, Cluster(topology))
    print_table(found)
    if arguments.out is not None:
        title = (
            f"{arguments.traces.name}: {arguments.ranks} ranks, {arguments.redundant} redundant slots a layer"
        )
        draw_policies(title, found).savefig(arguments.out)


if __name__ == "__main__":
    main()
