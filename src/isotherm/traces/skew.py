"""How uneven heat is, and how it changes: what one looks at before balancing anything."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.traces.header import HeatHeader
from isotherm.traces.sums import WindowSum
from isotherm.window import HeatWindow, ImbalanceSummary, layer_imbalance

_TOP = 8


@dataclass(frozen=True)
class LayerSkew:
    """One layer: tokens it computed (each once per expert that it picked), the Gini coefficient of its
    experts, the hottest over the mean, and the part that the ``top`` hottest receive."""

    layer: int
    heat: int
    gini: float
    max_over_mean: float
    top_share: float


@dataclass(frozen=True)
class Drift:
    """How alike the heat of two windows is: cosine over the experts, mean over layers and least."""

    window: int
    cosine: float
    least_cosine: float
    least_layer: int


@dataclass(frozen=True)
class KindPair:
    """How alike two kinds of tokens are: cosine, and how many of the ``top`` hottest experts they share;
    means over layers. None where one of them has no heat."""

    kinds: tuple[str, str]
    cosine: float | None
    top_overlap: float | None


@dataclass(frozen=True)
class HeatReport:
    """What a trace holds.

    ``drift`` compares each window but the first to the one before it. ``rank_imbalance`` is that of the
    ranks as they were, None where the trace knows no loads.
    """

    windows: int
    first_step: int
    last_step: int
    heat_per_kind: dict[str, int]
    experts: int
    top: int
    layers: tuple[LayerSkew, ...]
    drift: tuple[Drift, ...]
    kind_pairs: tuple[KindPair, ...]
    rank_imbalance: ImbalanceSummary | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_skew(header: HeatHeader, windows: Iterable[HeatWindow], *, top: int | None = None) -> HeatReport:
    """Reads every window once, one at a time. ``top``: None: 8, or all experts where there are fewer.

    Raises:
        ValueError: ``top`` is not from 1 to the number of experts, or there is no window.
    """
    top = min(_TOP, header.experts) if top is None else top
    if not 1 <= top <= header.experts:
        raise ValueError(f"top={top} must be from 1 to the {header.experts} experts of a layer")
    added, drift = WindowSum(header), []
    before_LE: Int64Array | None = None
    for index, window in enumerate(windows):
        added.add(window)
        heat_LE = window.heat_LE
        if before_LE is not None:
            drift.append(_drift(index, before_LE, heat_LE, header))
        before_LE = heat_LE
    total = added.total()
    heat_KLE = total.heat_KSLE[:, 0]
    loads = None if total.slot_load_LGS is None else ImbalanceSummary.of(total.load_LG, header.layer_ids)
    return HeatReport(
        windows=len(drift) + 1,
        first_step=total.start_step,
        last_step=total.end_step,
        heat_per_kind=dict(zip(header.kinds, heat_KLE.sum(axis=(1, 2)).tolist())),
        experts=header.experts,
        top=top,
        layers=_layers(total.heat_LE, header, top),
        drift=tuple(drift),
        kind_pairs=tuple(
            _pair(heat_KLE, pair, header, top) for pair in combinations(range(len(heat_KLE)), 2)
        ),
        rank_imbalance=loads,
    )


def gini(heat_LE: Int64Array | FloatArray) -> FloatArray:
    """The Gini coefficient of each layer's experts, float64 [layers]: 0 where all are equal or there is no
    heat, (experts - 1) / experts where one takes all."""
    sorted_LE = np.sort(heat_LE.astype(np.float64), axis=1)
    experts = sorted_LE.shape[1]
    total_L = sorted_LE.sum(axis=1)
    weighted_L = sorted_LE @ (2.0 * np.arange(1, experts + 1) - experts - 1)
    out_L: FloatArray = np.divide(
        weighted_L, experts * total_L, out=np.zeros_like(total_L), where=total_L > 0
    )
    return out_L


def cosines(one_LE: Int64Array, other_LE: Int64Array) -> FloatArray:
    """The cosine of two heats in each layer, float64 [layers]; 1 where both are zero, 0 where one is."""
    a_LE, b_LE = one_LE.astype(np.float64), other_LE.astype(np.float64)
    norm_L = np.linalg.norm(a_LE, axis=1) * np.linalg.norm(b_LE, axis=1)
    both_cold_L = ~np.any(one_LE, axis=1) & ~np.any(other_LE, axis=1)
    dot_L = np.einsum("le,le->l", a_LE, b_LE)
    out_L = np.where(both_cold_L, 1.0, 0.0)
    np.divide(dot_L, norm_L, out=out_L, where=norm_L > 0)
    return np.minimum(out_L, 1.0)


def _layers(heat_LE: Int64Array, header: HeatHeader, top: int) -> tuple[LayerSkew, ...]:
    total_L = heat_LE.sum(axis=1)
    hottest_L = np.sort(heat_LE, axis=1)[:, -top:].sum(axis=1)
    columns = (
        total_L.tolist(),
        gini(heat_LE).tolist(),
        layer_imbalance(heat_LE).tolist(),
        (hottest_L / np.maximum(total_L, 1)).tolist(),
    )
    return tuple(LayerSkew(*row) for row in zip(header.layer_ids, *columns))


def _drift(window: int, before_LE: Int64Array, heat_LE: Int64Array, header: HeatHeader) -> Drift:
    cosine_L = cosines(before_LE, heat_LE)
    least = int(cosine_L.argmin())
    return Drift(window, float(cosine_L.mean()), float(cosine_L[least]), header.layer_ids[least])


def _pair(heat_KLE: Int64Array, pair: tuple[int, int], header: HeatHeader, top: int) -> KindPair:
    names = (header.kinds[pair[0]], header.kinds[pair[1]])
    one_LE, other_LE = heat_KLE[pair[0]], heat_KLE[pair[1]]
    if not one_LE.any() or not other_LE.any():
        return KindPair(names, None, None)
    hottest = [np.argsort(-heat_LE, axis=1, kind="stable")[:, :top] for heat_LE in (one_LE, other_LE)]
    shared = [len(np.intersect1d(*rows)) / top for rows in zip(*hottest)]
    return KindPair(names, float(cosines(one_LE, other_LE).mean()), float(np.mean(shared)))
