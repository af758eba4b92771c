"""Statistics of a balancer for Prometheus; needs the ``metrics`` extra.

    from prometheus_client import REGISTRY
    REGISTRY.register(BalancerCollector(balancer.statistics))

Nothing is counted here: each scrape reads `isotherm.Statistics` once, which never waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from isotherm.errors import MissingExtraError
from isotherm.status import State, Statistics

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise MissingExtraError("prometheus_client", "metrics") from error


class BalancerCollector(Collector):
    """Offers the statistics of one balancer to a registry, on every rank its own.

    ``isotherm_state{state}``
        1 for the state that it is in, 0 for the others.
    ``isotherm_last_progress_timestamp_seconds``
        when a window, a decision or a move was last completed: an engine that serves while this grows old
        is no longer balanced.
    ``isotherm_imbalance_ratio{quantile}``
        what the last window carried: over its layers the quantiles 0.5, 0.95 and 1 (the worst).
    ``isotherm_plans_total``, ``isotherm_moves_total``
        plans taken on, and experts moved, over all ranks.
    ``isotherm_moved_bytes_total``
        weights that arrived on this rank.
    ``isotherm_failures_total{kind}``
        what went wrong; docs/failures.md has the kinds.
    ``isotherm_waits_total``
        times that a call on the forward path blocked the host, in this process: must stay 0.
    """

    def __init__(self, statistics: Callable[[], Statistics]) -> None:
        self._statistics = statistics

    def describe(self) -> list[Metric]:
        """None, so that registering it reads no statistics."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics, from one reading."""
        now = self._statistics()
        yield _labelled(
            GaugeMetricFamily("isotherm_state", "What the balancer is doing", labels=["state"]),
            {state.value: float(state is now.state) for state in State},
        )
        yield GaugeMetricFamily(
            "isotherm_last_progress_timestamp_seconds",
            "When a window, a decision or a move was last completed",
            value=now.progress_seconds,
        )
        yield _labelled(
            GaugeMetricFamily(
                "isotherm_imbalance_ratio",
                "Hottest rank over mean, over the layers of the last window",
                labels=["quantile"],
            ),
            {"0.5": now.imbalance_p50, "0.95": now.imbalance_p95, "1": now.imbalance_worst},
        )
        for name, text, value in (
            ("plans", "Plans taken on", now.plans),
            ("moves", "Experts moved, over all ranks", now.moves),
            ("moved_bytes", "Weights that arrived on this rank, in bytes", now.moved_bytes),
            ("waits", "Times that a call on the forward path blocked the host", now.waits),
        ):
            yield CounterMetricFamily(f"isotherm_{name}", text, value=value)
        yield _labelled(
            CounterMetricFamily("isotherm_failures", "What went wrong, by kind", labels=["kind"]),
            now.failures.as_dict(),
        )


def _labelled(family: GaugeMetricFamily | CounterMetricFamily, values: Mapping[str, float | None]) -> Metric:
    for label, value in values.items():
        if value is not None:
            family.add_metric([label], value)
    return family
