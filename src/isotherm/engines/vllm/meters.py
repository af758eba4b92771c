"""What the observer sees, for Prometheus; needs the ``metrics`` extra, which vLLM brings along."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from isotherm.errors import MissingExtraError
from isotherm.window import KINDS, HeatWindow

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise MissingExtraError("prometheus_client", "metrics") from error

QUANTILES = (0.5, 0.95, 1.0)


class WindowMetrics(Collector):
    """Metrics of the windows that it is called with.

    ``isotherm_windows_total``
        windows gathered.
    ``isotherm_tokens_total{kind}``
        tokens in them, over all ranks.
    ``isotherm_hottest_expert_ratio{quantile}``
        tokens of the hottest expert over those of the mean one in the last window: over its layers the
        quantiles 0.5, 0.95 and 1 (the worst).
    ``isotherm_last_progress_timestamp_seconds``
        when the last window came.
    """

    def __init__(self) -> None:
        self._windows = 0
        self._tokens_K = np.zeros(len(KINDS), np.int64)
        self._ratio_Q: np.ndarray | None = None
        self._came_seconds = 0.0

    def __call__(self, window: HeatWindow) -> None:
        heat_LE = window.heat_LE
        hot_L, mean_L = heat_LE.max(axis=1), heat_LE.mean(axis=1)
        ratio_L = np.divide(hot_L, mean_L, out=np.ones_like(mean_L), where=mean_L > 0)
        self._ratio_Q = np.quantile(ratio_L, QUANTILES)
        self._windows += 1
        self._tokens_K = self._tokens_K + window.tokens_K
        self._came_seconds = time.time()

    def describe(self) -> list[Metric]:
        """None: nothing is known before the first window."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics, as of the last window."""
        yield CounterMetricFamily("isotherm_windows", "Windows of heat gathered", value=self._windows)
        tokens = CounterMetricFamily("isotherm_tokens", "Tokens counted, over all ranks", labels=["kind"])
        for kind, count in zip(KINDS, self._tokens_K.tolist(), strict=True):
            tokens.add_metric([kind], count)
        yield tokens
        ratio = GaugeMetricFamily(
            "isotherm_hottest_expert_ratio",
            "Hottest expert over the mean one, over the layers of the last window",
            labels=["quantile"],
        )
        for quantile, value in zip(QUANTILES, () if self._ratio_Q is None else self._ratio_Q.tolist()):
            ratio.add_metric([f"{quantile:g}"], value)
        yield ratio
        yield GaugeMetricFamily(
            "isotherm_last_progress_timestamp_seconds",
            "When the last window came",
            value=self._came_seconds,
        )


def serve_window_metrics(port: int) -> Callable[[HeatWindow], None]:
    """Serves metrics at this port of all addresses; to be called with each window.

    Raises:
        OSError: the port is taken.
    """
    metrics, registry = WindowMetrics(), CollectorRegistry()
    registry.register(metrics)
    start_http_server(port, registry=registry)
    return metrics
