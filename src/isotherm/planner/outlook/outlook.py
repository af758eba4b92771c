"""What is remembered of windows, and what is expected of the next ones.

Whatever is planned for is halved: a change is planned on the older half of the heat and scored on the newer
one, which it has not seen, so that neither scatter nor a change of traffic is taken for a gain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.planner.outlook.forecast import History, window_weights
from isotherm.planner.outlook.noise import dispersion
from isotherm.window import HeatWindow


@dataclass(frozen=True, eq=False)
class Glimpse:
    """A window as it is remembered: H is its older and its newer half, or one axis of 1 where it has a single
    slice.

    Attributes:
        heat_HKLE: float64, tokens.
        steps_H: steps of each half.
        scatter_K: `dispersion` of the kinds, not a number where nothing tells.
        active_LE: float64, steps in which an expert had a token; None where nobody counted them.
    """

    heat_HKLE: FloatArray
    steps_H: tuple[int, ...]
    scatter_K: FloatArray
    active_LE: FloatArray | None

    @classmethod
    def of(cls, window: HeatWindow, before: Glimpse | None) -> Glimpse:
        """``before``: the window before; what a single slice scatters is seen beside it alone."""
        slices = len(window.slice_steps) - 1
        cuts = (0, slices // 2, slices) if slices > 1 else (0, 1)
        heat_HKLE = np.stack([window.heat_KSLE[:, a:b].sum(axis=1) for a, b in pairwise(cuts)]).astype(
            np.float64
        )
        steps_H = np.diff(np.array(window.slice_steps)[list(cuts)])
        pair = (heat_HKLE[0], heat_HKLE[-1])
        if slices == 1:
            pair = (heat_HKLE[0], np.zeros_like(heat_HKLE[0]) if before is None else before.heat_KLE)
        scatter_K = np.array([dispersion(*kind) for kind in zip(*pair, strict=True)])
        active_LE = None if window.active_steps_LE is None else window.active_steps_LE.astype(np.float64)
        return cls(heat_HKLE, tuple(steps_H.tolist()), scatter_K, active_LE)

    @cached_property
    def heat_KLE(self) -> FloatArray:
        total_KLE: FloatArray = self.heat_HKLE.sum(axis=0)
        return total_KLE


def scatter_of(glimpses: tuple[Glimpse, ...]) -> FloatArray:
    """The median of the kinds' dispersion, float64 [kinds], at least 1: one window in which traffic changed
    is no measure."""
    scatter_KW = np.transpose([glimpse.scatter_K for glimpse in glimpses])
    known = [scatter_W[~np.isnan(scatter_W)] for scatter_W in scatter_KW]
    return np.array([max(1.0, float(np.median(some))) if len(some) else 1.0 for some in known])


@dataclass(frozen=True, eq=False)
class Case:
    """A heat to be good for, in weighed tokens per step.

    Attributes:
        name: in words.
        heat_LE: all of it.
        older_LE, newer_LE: its halves.
        scatter: variance over mean of a number of ``newer_LE``.
        kind: the kind of tokens that it is of; None: all kinds together.
    """

    name: str
    heat_LE: FloatArray
    older_LE: FloatArray
    newer_LE: FloatArray
    scatter: float
    kind: int | None = None


class _Half(NamedTuple):
    """The older or the newer pieces of a kind: tokens float64 [layers, experts] and steps, both weighed, and
    the tokens weighed twice, all together: their variance over the scatter."""

    heat_LE: FloatArray
    steps: float
    square: float


class _Halves(NamedTuple):
    older: _Half
    newer: _Half


def look_ahead(
    glimpses: tuple[Glimpse, ...], forecast: str, weight_K: FloatArray, *, robust: bool
) -> tuple[Case, ...]:
    """What to plan for: the forecast of all kinds together, each kind weighed. With ``robust`` also each kind
    alone, and the traffic that the forecast left out. Empty where there is not yet an older half beside a
    newer one.

    Raises:
        PlanRefusedError, ValueError: see `window_weights`.
    """
    scatter_K = scatter_of(glimpses)
    heat_KWLE = np.stack([glimpse.heat_KLE for glimpse in glimpses], axis=1)
    weight_KW = np.ones(heat_KWLE.shape[:2])  # a kind without heat has no say
    for kind in np.flatnonzero(heat_KWLE.any(axis=(1, 2, 3))):
        weight_KW[kind] = window_weights(forecast, History(heat_KWLE[kind], float(scatter_K[kind])))
    expected = _halve(glimpses, weight_KW)
    cases = [_case("the forecast", expected, scatter_K, weight_K)]
    if robust:
        cases += _others(glimpses, expected, scatter_K, weight_K, weight_KW)
    return tuple(case for case in cases if case is not None)


def _others(
    glimpses: tuple[Glimpse, ...],
    expected: list[_Halves] | None,
    scatter_K: FloatArray,
    weight_K: FloatArray,
    weight_KW: FloatArray,
) -> list[Case | None]:
    cases = []
    warm_K = weight_K * np.array([glimpse.heat_KLE.any(axis=(1, 2)) for glimpse in glimpses]).any(axis=0)
    if np.count_nonzero(warm_K) > 1:
        alone_KK = np.diag(weight_K)
        cases = [
            _case(f"kind {kind} alone", expected, scatter_K, alone_KK[kind], int(kind))
            for kind in np.flatnonzero(warm_K)
        ]
    out_W = (weight_KW[weight_K > 0] == 0).any(axis=0)
    if out_W.any():
        earlier = _halve(glimpses, np.tile(out_W.astype(np.float64), (len(weight_K), 1)))
        cases.append(_case("earlier traffic", earlier, scatter_K, weight_K))
    return cases


def _halve(glimpses: tuple[Glimpse, ...], weight_KW: FloatArray) -> list[_Halves] | None:
    """The halves of the pieces that each kind's forecast rests on; of the two newest of all where it rests on
    one alone. None where there are no two."""
    out = []
    for kind, weight_W in enumerate(weight_KW):
        pieces = [(w, h, weight_W[w]) for w, each in enumerate(glimpses) for h in range(len(each.steps_H))]
        used = [piece for piece in pieces if piece[2] > 0]
        if len(used) < 2:
            used = [(w, h, 1.0) for w, h, _ in pieces[-2:]]
        if len(used) < 2:
            return None
        middle = len(used) // 2
        out.append(_Halves(*(_add_up(glimpses, kind, half) for half in (used[:middle], used[middle:]))))
    return out


def _add_up(glimpses: tuple[Glimpse, ...], kind: int, pieces: list[tuple[int, int, float]]) -> _Half:
    heat_LE, steps, square = np.zeros(glimpses[0].heat_HKLE.shape[2:]), 0.0, 0.0
    for window, half, weight in pieces:
        piece_LE = weight * glimpses[window].heat_HKLE[half, kind]
        heat_LE += piece_LE
        steps += weight * glimpses[window].steps_H[half]
        square += weight * float(piece_LE.sum())
    return _Half(heat_LE, steps, square)


def _case(
    name: str,
    halves: list[_Halves] | None,
    scatter_K: FloatArray,
    weight_K: FloatArray,
    kind: int | None = None,
) -> Case | None:
    """The kinds together; None where one of the halves is without heat."""
    if halves is None:
        return None
    heat_LE, older_LE, newer_LE = (np.zeros_like(halves[0].older.heat_LE) for _ in range(3))
    variance = 0.0
    for (older, newer), scatter, weight in zip(halves, scatter_K, weight_K, strict=True):
        heat_LE += weight * (older.heat_LE + newer.heat_LE) / (older.steps + newer.steps)
        older_LE += weight * older.heat_LE / older.steps
        newer_LE += weight * newer.heat_LE / newer.steps
        variance += weight**2 * scatter * newer.square / newer.steps**2
    if not older_LE.any() or not newer_LE.any():
        return None
    return Case(name, heat_LE, older_LE, newer_LE, float(variance / newer_LE.sum()), kind)
