"""Windows and files that the tests of replay make, and the commands that they run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import isotherm as iso
from isotherm.cli.main import main
from isotherm.window import HeatWindow

LAYER_IDS = (2, 3, 5)
CLUSTER = ("--ranks", 4, "--nodes", 2, "--redundant", 4)
STEP = ("--step-ms", 50, "--expert-share", 0.5, "--expert-bytes", 1000)


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


def save(folder: Path, windows: int = 8, **shape: int) -> Path:
    """A heat file of drifting windows."""
    path = folder / "some.heat"
    with iso.HeatWriter(path, iso.HeatHeader(LAYER_IDS, 8, 2, kinds=("all",))) as writer:
        for window in drifting_windows(windows, **shape):
            writer.append(window)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err
