"""Draws one rank of a timeline that `isotherm demo --timeline FILE` wrote.

python examples/draw_timeline.py timeline.json --out docs/streams.png
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from matplotlib import pyplot as plt

COLOURS = {
    "forward": "#4c72b0",
    "snapshot": "#55a868",
    "gather": "#dd8452",
    "headers": "#c7c7c7",
    "plan": "#8172b3",
    "carry": "#c44e52",
}
LANES = {
    "main": "main\n(engine)",
    "heat stream": "heat",
    "heartbeat": "heartbeat",
    "planner": "planner",
    "carrier": "carrier",
}


def read_spans(path: Path, rank: int) -> dict[str, list[tuple[str, float, float]]]:
    """For each track of the rank: (name, start, duration) in milliseconds."""
    events = json.loads(path.read_text())
    events = events["traceEvents"] if isinstance(events, dict) else events
    tracks = {
        event["tid"]: event["args"]["name"]
        for event in events
        if event["ph"] == "M" and event["name"] == "thread_name" and event["pid"] == rank
    }
    spans: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["pid"] == rank:
            spans[tracks[event["tid"]]].append((event["name"], event["ts"] / 1e3, event["dur"] / 1e3))
    return spans


def around_the_first_plan(spans: dict[str, list[tuple[str, float, float]]], width: float) -> float:
    """Where a picture of ``width`` milliseconds shows the gather that leads to it, and what follows."""
    plans = [start for _, start, _ in spans["planner"]]
    return (plans[0] if plans else spans["main"][0][1]) - 0.3 * width


def draw(spans: dict[str, list[tuple[str, float, float]]], begin: float, width: float, out: Path) -> None:
    figure, axes = plt.subplots(figsize=(11, 2.9), dpi=110)
    used = {}
    lanes = [(track, label) for track, label in reversed(LANES.items()) if track in spans]
    for row, (track, label) in enumerate(lanes):
        axes.text(-0.008 * width, row, label, ha="right", va="center", fontsize=9)
        for name, start, duration in spans.get(track, []):
            kind = name.split()[0]
            left, right = max(start - begin, 0), min(start + duration - begin, width)
            if right <= 0 or left >= width:
                continue
            height = 0.72 if kind != "headers" else 0.3
            used[kind] = axes.barh(
                row, max(right - left, width / 450), left=left, height=height, color=COLOURS[kind],
                edgecolor="white" if kind == "forward" else "none", linewidth=0.4,
                zorder=3 if kind == "snapshot" else 2,  # a thin line between two passes
            )  # fmt: skip
    axes.set_xlim(0, width)
    axes.set_ylim(-0.6, len(lanes) - 0.4)
    axes.set_yticks([])
    axes.set_xlabel("milliseconds")
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(used.values(), used.keys(), loc="upper center", ncols=len(used), frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.92))
    figure.savefig(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("timeline", type=Path)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--width", type=float, default=1200.0, help="milliseconds shown")
    parser.add_argument("--out", type=Path, default=Path("streams.png"))
    arguments = parser.parse_args()
    spans = read_spans(arguments.timeline, arguments.rank)
    draw(spans, around_the_first_plan(spans, arguments.width), arguments.width, arguments.out)


if __name__ == "__main__":
    main()
