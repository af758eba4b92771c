"""What the next windows will be like: past windows, weighed.

A forecast is a function from a `History` to the weight of each of its windows; what is expected is the mean
of their heats with these weights. So every forecast tells what it rests on, and how certain it can be.
Other packages offer theirs under the entry point group ``isotherm.forecasts``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.errors import PlanRefusedError
from isotherm.planner.outlook.noise import is_change
from isotherm.planner.policy.plugins import Plugins

_HALF_LIFE_WINDOWS = 2.0


@dataclass(frozen=True, eq=False)
class History:
    """What is remembered of one kind of tokens, oldest window first.

    Attributes:
        heat_WLE: float64 [windows, layers, experts], tokens.
        scatter: how much more counts scatter than independent tokens would, at least 1.
    """

    heat_WLE: FloatArray
    scatter: float


Forecast: TypeAlias = Callable[[History], FloatArray]
"""Answers with the weights, float [windows]: finite, not negative, not all 0. Deterministic."""


def forecast_mean(history: History) -> FloatArray:
    """All that is remembered alike: best where traffic stays as it is."""
    return np.ones(len(history.heat_WLE))


def forecast_last(history: History) -> FloatArray:
    """The newest window alone."""
    weight_W = np.zeros(len(history.heat_WLE))
    weight_W[-1] = 1.0
    return weight_W


def forecast_ewma(history: History) -> FloatArray:
    """Older windows count less, by half every two windows."""
    age_W = np.arange(len(history.heat_WLE))[::-1]
    return np.asarray(0.5 ** (age_W / _HALF_LIFE_WINDOWS))


def forecast_changepoint(history: History) -> FloatArray:
    """The windows since traffic last changed alike: back from the newest, until one differs from the mean of
    those after it by more than scatter explains (see `noise.is_change`)."""
    heat_WLE, weight_W = history.heat_WLE, forecast_last(history)
    total_LE = heat_WLE[-1]
    for window in range(len(heat_WLE) - 2, -1, -1):
        if is_change(total_LE, heat_WLE[window], history.scatter):
            break
        weight_W[window] = 1.0
        total_LE = total_LE + heat_WLE[window]
    return weight_W


_FORECASTS: Plugins[Forecast] = Plugins(
    "forecast",
    "isotherm.forecasts",
    {
        "changepoint": forecast_changepoint,
        "mean": forecast_mean,
        "ewma": forecast_ewma,
        "last": forecast_last,
    },
)


def forecasts() -> tuple[str, ...]:
    """The names of all forecasts, ours first."""
    return _FORECASTS.names()


def get_forecast(name: str) -> Forecast:
    """The forecast of that name; ours cannot be replaced.

    Raises:
        ValueError: there is none, or the package that offers it cannot be loaded.
    """
    return _FORECASTS.get(name)


def window_weights(name: str, history: History) -> FloatArray:
    """What the forecast of that name answers, checked.

    Raises:
        PlanRefusedError: the answer has another shape, is negative or not finite, or all 0.
        ValueError: there is no such forecast.
    """
    weight_W = np.asarray(get_forecast(name)(history), np.float64)
    wanted = (len(history.heat_WLE),)
    if (
        weight_W.shape != wanted
        or not np.isfinite(weight_W).all()
        or (weight_W < 0).any()
        or not weight_W.any()
    ):
        raise PlanRefusedError(
            f"forecast {name!r} answered with weights {weight_W.tolist()}; {wanted[0]} finite numbers, none "
            "negative and not all 0, were asked for"
        )
    return weight_W
