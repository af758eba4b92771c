"""Pictures of replays and of policies side by side, drawn with matplotlib (the extra ``plot``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isotherm.cli.pictures import put_title
from isotherm.observe.picture import OFF_COLOUR, PUBLISH_COLOUR

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from isotherm.replay import ReplayReport
    from isotherm.replay.comparison import Comparison

OURS_COLOUR = "#d1495b"
_DPI = 110
_LABEL_OFFSETS = ((0, 8), (0, 22))


def draw_replay(title: str, report: ReplayReport) -> Figure:
    """Imbalance of each window with and without balancing, over the moves in it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.4), layout="constrained", dpi=_DPI)
    put_title(figure, title)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    steps = [window.end_step for window in report.windows]
    upper.plot(
        steps,
        [window.unbalanced for window in report.windows],
        color=OFF_COLOUR,
        lw=1.2,
        label="without balancing",
    )
    upper.plot(steps, [window.imbalance for window in report.windows], color="black", lw=1.6, label="with")
    upper.axhline(1, color="#cccccc", lw=0.8)
    upper.set_title("imbalance of each window: hottest rank / mean, all layers", fontsize=10)
    upper.set_ylabel("max / mean")
    upper.legend(fontsize=9)
    widths = [0.9 * window.steps for window in report.windows]
    middles = [(window.start_step + window.end_step) / 2 for window in report.windows]
    lower.bar(middles, [window.moves for window in report.windows], width=widths, color=PUBLISH_COLOUR)
    lower.set_title("experts moved in each window", fontsize=10)
    lower.set_xlabel("step")
    return figure


def draw_policies(title: str, found: Comparison) -> Figure:
    """Slots moved against balancedness, a point for each policy; up and to the left is better."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 5.0), layout="constrained", dpi=_DPI)
    axes = figure.subplots()
    shown = sorted((row for row in found.rows if row.refused is None), key=lambda row: row.moved_part)
    for number, row in enumerate(shown):
        colour = OURS_COLOUR if row.policy == found.policy else "black"
        at = (100 * row.moved_part, row.balancedness)
        axes.plot([at[0]] * 2, [row.worst_balancedness, at[1]], color=colour, lw=1, alpha=0.5)
        axes.plot(*at, "o", color=colour)
        # Policies that move alike are written above each other.
        offset = _LABEL_OFFSETS[number % len(_LABEL_OFFSETS)]
        axes.annotate(
            row.policy, at, xytext=offset, textcoords="offset points", color=colour, fontsize=10, ha="center"
        )
    unbalanced = float(np.median([1 / window.unbalanced for window in found.chosen.windows]))
    axes.axhline(1, color="#cccccc", lw=0.8)
    axes.axhline(unbalanced, color=OFF_COLOUR, lw=1, ls="--")
    axes.annotate(
        "without any plan", (120, unbalanced), xytext=(0, 4), textcoords="offset points", ha="right",
        color=OFF_COLOUR, fontsize=9,
    )  # fmt: skip
    axes.set_ylim(top=1.0 + 0.16 * (1.0 - axes.get_ylim()[0]))
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(-0.1, 150)
    axes.set_xticks([0, 1, 10, 100], ["0", "1 %", "10 %", "100 %"])
    put_title(figure, title)
    axes.set_xlabel("slots moved by a plan, mean")
    axes.set_ylabel(
        "balancedness served: mean rank / hottest rank\n(point: median window, line: down to the worst)"
    )
    return figure
