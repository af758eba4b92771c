"""Draws pairs that cross nodes over balancedness: 32 ranks with 32 redundant slots, on 2 and on 4 nodes.

python examples/draw_locality.py --traces FOLDER --out docs/locality.png

FOLDER as for `isotherm bench route`; without it, heat is drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib import pyplot as plt

import isotherm as iso
from isotherm.bench.plan_heat import read_heats
from isotherm.bench.route_locality import NODES, RANKS, SLACKS, cuts_of, source_heats

NAMES = {True: "nodes serve the same", False: "nodes serve two kinds in turn"}
COLOURS = {True: "#4c72b0", False: "#c44e52"}


def draw(traces: Path | None, out: Path) -> None:
    heats = read_heats(traces)
    figure, panels = plt.subplots(1, len(NODES), figsize=(11, 4.2), dpi=110)
    for axes, nodes in zip(panels, NODES):
        topology = iso.Topology.for_model(
            experts=heats.first.shape[1], redundant=RANKS, ranks=RANKS, nodes=nodes
        )
        for alike, name in NAMES.items():
            cuts = cuts_of(source_heats(heats, nodes, alike=alike), topology, SLACKS)
            colour = COLOURS[alike]
            balance = [cut.mean for cut in cuts]
            axes.plot(
                balance, [100 * cut.found for cut in cuts], "o-", color=colour, markersize=3.5, label=name
            )
            axes.axhline(100 * cuts[0].bound, color=colour, linestyle=":", label=f"bound, {name}")
        axes.axhline(100 * cuts[0].blind, color="#777777", label="a plan that knows no nodes")
        axes.invert_xaxis()
        axes.set_xlabel("balancedness (mean over hottest rank), mean of the layers")
        axes.set_title(f"{nodes} nodes", fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("(token, expert) pairs that cross nodes, %")
    panels[1].legend(fontsize=7.5)
    figure.tight_layout()
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, help="folder of trace files; default: drawn heat")
    parser.add_argument("--out", type=Path, default=Path("locality.png"))
    arguments = parser.parse_args()
    draw(arguments.traces, arguments.out)


if __name__ == "__main__":
    main()
