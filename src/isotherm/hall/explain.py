"""What a window carried beside what was planned and predicted for it."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.mover import Ledger
from isotherm.placement import rank_loads
from isotherm.status import Served
from isotherm.topology import Topology
from isotherm.window import HeatWindow, overall_imbalance

_DRAWS = 64
"""Steps imagined to find what a single one carries."""


def explain_window(window: HeatWindow, ledger: Ledger, topology: Topology, planned: float | None) -> Served:
    """Planned, predicted by the shares of ``ledger``, achieved, and expected of a single step."""
    predicted_LG = rank_loads(window.heat_LE, ledger.placement, ledger.shares, topology)
    return Served(
        planned=planned,
        predicted=overall_imbalance(predicted_LG),
        achieved=overall_imbalance(window.load_LG),
        per_step=step_imbalance(window.load_LG, window.steps),
    )


def step_imbalance(load_LG: Int64Array, steps: int) -> float:
    """The imbalance that a single step of a window with these loads is expected to have: each rank's tokens
    scatter about their mean as independent ones do (Poisson, by its normal limit). Estimated from the same
    draws every time, so that two windows differ by their loads alone."""
    mean_LG = load_LG / max(steps, 1)
    total = float(mean_LG.mean(axis=1).sum())
    if total == 0:
        return 1.0
    scatter_DG = np.random.default_rng(0).standard_normal((_DRAWS, 1, mean_LG.shape[1]))
    peak_DL: FloatArray = (mean_LG + np.sqrt(mean_LG) * scatter_DG).max(axis=2)
    return max(float(peak_DL.mean(axis=0).sum()) / total, 1.0)
