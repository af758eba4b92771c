"""What ranks carry of a window, by what is in force while it is served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.placement import Placement, rank_loads
from isotherm.topology import Topology
from isotherm.window import HeatWindow, layer_imbalance, overall_imbalance


@dataclass(frozen=True, eq=False)
class InForce:
    """A placement and its shares, in force from ``start`` until the step before ``end``."""

    start: int
    end: int
    placement: Placement
    shares: FloatArray


@dataclass(frozen=True)
class Served:
    """How evenly a window was served: ``overall``, the hottest ranks over the mean, which is what steps pay;
    ``par``, the mean over layers and time of max / mean."""

    overall: float
    par: float


def serve_window(window: HeatWindow, spans: Sequence[InForce], topology: Topology) -> Served:
    """Serves each slice of the window by what is in force while it lasts. The heat of a slice is taken to be
    even in time; the ``spans`` follow each other and cover the window.
    """
    loads, weights = [], []
    for heat_LE, (begin, end) in zip(window.heat_SLE, pairwise(window.slice_steps), strict=True):
        for span in spans:
            steps = min(end, span.end) - max(begin, span.start)
            if steps > 0:
                load_LG = rank_loads(heat_LE, span.placement, span.shares, topology)
                loads.append(load_LG * (steps / (end - begin)))
                weights.append(steps)
    load_XLG = np.stack(loads)
    par = np.average(layer_imbalance(load_XLG).mean(axis=1), weights=weights)
    return Served(overall_imbalance(load_XLG), float(par))
