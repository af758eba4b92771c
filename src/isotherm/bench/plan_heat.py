"""The heat that plans are measured on: a folder of real statistics, or drawn as uneven as real models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isotherm.arrays import FloatArray

FILES = ("decode_in1000out1000.json", "prefill_in1024.json", "decode_in500out1500.json")
"""In a folder of traces: two kinds of traffic that differ much, and one near to the first."""
SIGMA = 0.7
"""Of the logarithm of an expert's heat; DeepSeek-V3's layers have .56 to .82."""


@dataclass(frozen=True, eq=False)
class Heats:
    """Three kinds of traffic through one model, float64 [layers, experts]: ``far`` differs from ``first`` as
    prefill does from decode, ``near`` as another length of answers does."""

    first: FloatArray
    far: FloatArray
    near: FloatArray
    source: str

    def first_layers(self, count: int) -> Heats:
        """The same of the first ``count`` layers."""
        return Heats(self.first[:count], self.far[:count], self.near[:count], self.source)


def read_heats(folder: Path | None) -> Heats:
    """The heats in ``folder``, or, for None, drawn ones of 58 layers and 256 experts.

    Raises:
        ValueError: a file is missing, or is no JSON object with ``logical_count`` [layers][experts].
    """
    if folder is None:
        rng = np.random.default_rng(0)
        first, other = rng.normal(0, SIGMA, (2, 58, 256))
        far, near = 0.6 * first + 0.8 * other, 0.99 * first + 0.14 * other
        return Heats(np.exp(first), np.exp(far), np.exp(near), f"drawn, log-normal with sigma {SIGMA}")
    first, far, near = (_read(folder / name) for name in FILES)
    return Heats(first, far, near, f"{folder.name}: {', '.join(FILES)}")


def draw_heat(layers: int, experts: int) -> FloatArray:
    """Float64 [layers, experts], log-normal, the same at each call."""
    return np.exp(np.random.default_rng(1).normal(0, SIGMA, (layers, experts)))


def _read(path: Path) -> FloatArray:
    """The layers of one file that have any heat."""
    try:
        counts = np.array(json.loads(path.read_text(encoding="utf-8"))["logical_count"], np.float64)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--traces: {path} cannot be read ({error}): give a folder with {', '.join(FILES)}, each a JSON "
            'object {"logical_count": [layers][experts]}'
        ) from error
    heat_LE: FloatArray = counts[counts.sum(axis=1) > 0]
    return heat_LE
