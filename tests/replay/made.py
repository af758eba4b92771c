"""Windows that the tests of replay make."""

from __future__ import annotations

import numpy as np

from isotherm.window import HeatWindow

LAYER_IDS = (2, 3, 5)


def drifting_windows(count: int, *, experts: int = 8, steps: int = 8, slices: int = 2, seed: int = 0):
    """Heat whose hot experts wander, window by window."""
    rng = np.random.default_rng(seed)
    base_LE = np.exp(rng.normal(0, 0.8, (len(LAYER_IDS), experts)))
    windows = []
    for number in range(count):
        mean_LE = 40 * np.roll(base_LE, number // 4, axis=1)
        heat = rng.poisson(mean_LE, (1, slices, *mean_LE.shape))
        borders = np.linspace(steps * number, steps * (number + 1), slices + 1).astype(int)
        tokens = [int(heat[0].sum() // (2 * len(LAYER_IDS)))]
        windows.append(HeatWindow(heat, None, tuple(borders.tolist()), tokens, LAYER_IDS))
    return windows
