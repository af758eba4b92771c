"""What heat that was made is like, beside what was asked for."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.traces.profiles import mean_cosine
from isotherm.traces.skew import gini
from isotherm.traces.synthesis import HeatSpec
from isotherm.window import KINDS, HeatWindow, layer_imbalance

_ALMOST_ALL = 0.95


@dataclass(frozen=True)
class Statistic:
    """One property: as asked for, None where nobody asked; as made, None where it cannot be seen."""

    name: str
    asked: float | None
    made: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_synthetic(
    spec: HeatSpec, windows: Iterable[HeatWindow], *, like: bool = False
) -> tuple[Statistic, ...]:
    """The properties of heat that was made to ``spec``, ``like`` a measured profile or not. Reads every
    window once, one at a time.

    Heat of one domain is seen where it has 95 % of the traffic. Noise is the difference of slices that
    follow one another in the same traffic.
    """
    seen = _Seen(spec)
    for number, window in enumerate(windows):
        seen.add(number, window)
    heats = [heat_LE for heat_KLE in seen.domains.values() for heat_LE in heat_KLE if heat_LE.any()]
    log_normal = spec.gini is None and not like
    expected_gini = math.erf(spec.sigma / 2) if log_normal else spec.gini
    return (
        Statistic("Gini", None if like else expected_gini, _mean(gini(heat_LE).mean() for heat_LE in heats)),
        Statistic(
            "hottest / mean",
            None if like else spec.max_over_mean,
            _mean(layer_imbalance(heat_LE).mean() for heat_LE in heats),
        ),
        Statistic("sigma of log heat", spec.sigma if log_normal else None, _mean(map(_log_spread, heats))),
        Statistic("cosine of domains", spec.cosine if len(seen.domains) > 1 else None, seen.domain_cosine()),
        Statistic("cosine of prefill and decode", spec.kind_cosine, seen.kind_cosine()),
        Statistic("part of decode tokens", _decode_asked(spec), seen.decode_part()),
        Statistic("independent choices per layer and step", _sample_asked(spec), seen.effective_sample()),
    )


class _Seen:
    """What windows add up to."""

    def __init__(self, spec: HeatSpec) -> None:
        self._spec = spec
        self.domains: dict[int, FloatArray] = {}
        self._tokens_K = np.zeros(len(KINDS), np.int64)
        self._before: tuple[tuple[float, ...], FloatArray] | None = None
        self._ratios: list[float] = []

    def add(self, number: int, window: HeatWindow) -> None:
        self._tokens_K += window.tokens_K
        for part, heat_KLE in enumerate(np.moveaxis(window.heat_KSLE, 1, 0)):
            moment = number + (part + 0.5) / self._spec.slices
            parts_D = self._spec.domain_parts(moment)
            domain = int(parts_D.argmax())
            if parts_D[domain] >= _ALMOST_ALL:
                self.domains[domain] = self.domains.get(domain, 0.0) + heat_KLE.astype(np.float64)
            self._compare((*parts_D, *self._spec.kind_parts(moment)), heat_KLE.astype(np.float64))

    def _compare(self, traffic: tuple[float, ...], heat_KLE: FloatArray) -> None:
        """Notes the sample that explains how far two slices of the same traffic differ."""
        if self._before is not None and self._before[0] == traffic:
            samples = [
                _sample(*pair) for pair in zip(self._before[1], heat_KLE) if pair[0].any() and pair[1].any()
            ]
            self._ratios.append(sum(samples) / self._spec.slice_steps)
        self._before = (traffic, heat_KLE)

    def domain_cosine(self) -> float | None:
        if len(self.domains) < 2:
            return None
        kinds = [
            kind for kind in range(len(KINDS)) if all(each[kind].any() for each in self.domains.values())
        ]
        return mean_cosine(np.stack([heat_KLE[kinds] for heat_KLE in self.domains.values()]), axis=0)

    def kind_cosine(self) -> float | None:
        both = [heat_KLE for heat_KLE in self.domains.values() if heat_KLE.any(axis=(1, 2)).all()]
        return mean_cosine(np.stack(both), axis=1) if both else None

    def decode_part(self) -> float:
        return float(self._tokens_K[1] / self._tokens_K.sum())

    def effective_sample(self) -> float | None:
        finite = [ratio for ratio in self._ratios if math.isfinite(ratio)]
        return float(np.median(finite)) if finite else None


def _sample(one_LE: FloatArray, other_LE: FloatArray) -> float:
    """Of two multinomial draws of equal size and parts p, the size: sum of p (1 - p) over the variance of the
    parts, which is half the square of their difference; both summed over layers."""
    a_LE, b_LE = (heat / heat.sum(axis=1, keepdims=True) for heat in (one_LE, other_LE))
    parts_LE = (a_LE + b_LE) / 2
    variance = float(((a_LE - b_LE) ** 2).sum() / 2)
    return float((parts_LE * (1 - parts_LE)).sum()) / variance if variance else math.inf


def _sample_asked(spec: HeatSpec) -> float:
    return float(min(spec.effective_sample, spec.tokens_per_step * spec.top_k))


def _decode_asked(spec: HeatSpec) -> float:
    moments = (np.arange(spec.windows * spec.slices) + 0.5) / spec.slices
    return float(np.mean([spec.kind_parts(moment)[1] for moment in moments]))


def _log_spread(heat_LE: FloatArray) -> float:
    return float(np.log(np.maximum(heat_LE, 1.0)).std(axis=1).mean())


def _mean(values: Iterable[float]) -> float | None:
    listed = [float(value) for value in values]
    return float(np.mean(listed)) if listed else None
