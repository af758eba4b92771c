"""Draws balance over moves: every policy after a large change of traffic, 32 ranks with 32 redundant slots.

python examples/draw_frontier.py --traces FOLDER --out docs/planning.png

FOLDER as for `isotherm bench plan`; without it, heat is drawn.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import pyplot as plt

import isotherm as iso
from isotherm.bench.plan_heat import read_heats
from isotherm.planner import policies

RANKS = 32
TARGETS = (0.80, 0.85, 0.90, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995)
COLOURS = {
    "incremental": "#c44e52",
    "deepseek": "#4c72b0",
    "swift": "#55a868",
    "flash": "#8172b3",
    "random": "#8c8c8c",
}


@dataclass(frozen=True)
class Point:
    """A plan: the part of all slots that it changes, the mean of the layers' balancedness, and the worst."""

    moved: float
    mean: float
    worst: float


def point_of(plan: iso.Plan) -> Point:
    balance = 1 / plan.imbalance
    return Point(len(plan.moves) / plan.shares.size, float(balance.mean()), float(balance.min()))


def frontier(heat: np.ndarray, start: iso.Placement, topology: iso.Topology, shares: str) -> list[Point]:
    """Our own plans, from shares alone to every target."""
    plans = [iso.plan(heat, topology, start, policy="static", shares=shares)]
    plans += [iso.plan(heat, topology, start, shares=shares, max_imbalance=1 / goal) for goal in TARGETS]
    return [point_of(plan) for plan in plans]


def others(heat: np.ndarray, start: iso.Placement, topology: iso.Topology) -> dict[str, tuple[Point, Point]]:
    """What the other policies answer, split evenly and with our shares. `static` begins our own frontier."""
    names = [name for name in policies() if name not in ("incremental", "static")]
    return {
        name: (
            point_of(iso.plan(heat, topology, start, policy=name, shares="even")),
            point_of(iso.plan(heat, topology, start, policy=name, shares="balanced")),
        )
        for name in names
    }


def draw(traces: Path | None, out: Path) -> None:
    heats = read_heats(traces)
    topology = iso.Topology.for_model(experts=heats.first.shape[1], redundant=RANKS, ranks=RANKS)
    start = iso.plan(heats.first, topology, shares="even").placement
    ours = {shares: frontier(heats.far, start, topology, shares) for shares in ("balanced", "even")}
    theirs = others(heats.far, start, topology)
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.2), dpi=110, sharey=True)
    for axes, measure, title in zip(panels, ("mean", "worst"), ("mean of the layers", "worst layer")):
        for shares, style in (("balanced", "o-"), ("even", "o--")):
            axes.plot(
                [100 * point.moved for point in ours[shares]],
                [getattr(point, measure) for point in ours[shares]],
                style,
                color=COLOURS["incremental"],
                markersize=3.5,
                label=f"incremental, {'exact shares' if shares == 'balanced' else 'even split'}",
            )
        for name, (even, balanced) in theirs.items():
            colour = COLOURS.get(name, "#937860")
            axes.plot(
                100 * even.moved, getattr(even, measure), "s", color=colour, label=f"{name}, even split"
            )
            axes.plot(
                100 * balanced.moved,
                getattr(balanced, measure),
                "s",
                markerfacecolor="none",
                color=colour,
                label=f"{name}, exact shares",
            )
        axes.set_xscale("symlog", linthresh=0.5, linscale=0.4)
        axes.set_xticks(
            [0, 0.5, 1, 2, 5, 10, 20, 50, 100], ["0", "0.5", "1", "2", "5", "10", "20", "50", "100"]
        )
        axes.set_xlim(-0.05, 110)
        axes.set_xlabel("slots changed, %")
        axes.set_title(title, fontsize=10)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("balancedness (mean over hottest rank)")
    panels[0].legend(fontsize=7.5, loc="lower center")
    figure.tight_layout()
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=Path, help="folder of trace files; default: drawn heat")
    parser.add_argument("--out", type=Path, default=Path("planning.png"))
    arguments = parser.parse_args()
    draw(arguments.traces, arguments.out)


if __name__ == "__main__":
    main()
