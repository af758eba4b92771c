"""Metrics for Prometheus: the names are a promise, and the values those of the statistics."""

import subprocess
import sys
from dataclasses import replace

import pytest

from isotherm import Balancer, MoEShape, State, Topology
from isotherm.status import FAILURE_KINDS, Failures
from memory_link import memory_links

prometheus_client = pytest.importorskip("prometheus_client", reason="needs the extra: isotherm[metrics]")

NAMES = {
    # Frozen: dashboards and alerts are built on them.
    ("isotherm_state", "state"): {"observing", "planning", "moving", "degraded"},
    ("isotherm_last_progress_timestamp_seconds", None): set(),
    ("isotherm_imbalance_ratio", "quantile"): {"0.5", "0.95", "1"},
    ("isotherm_plans_total", None): set(),
    ("isotherm_moves_total", None): set(),
    ("isotherm_moved_bytes_total", None): set(),
    ("isotherm_failures_total", "kind"): {
        "planner_raised",
        "planner_late",
        "plan_refused",
        "transfer_failed",
        "transfer_late",
        "room_failed",
        "stalled",
        "link_lost",
    },
    ("isotherm_waits_total", None): set(),
}


def scrape(statistics):
    """Sample name and labels to value, as a server would read them."""
    from prometheus_client.parser import text_string_to_metric_families

    from isotherm.observe.metrics import BalancerCollector

    registry = prometheus_client.CollectorRegistry()
    registry.register(BalancerCollector(lambda: statistics))
    text = prometheus_client.generate_latest(registry).decode()
    families = text_string_to_metric_families(text)
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def statistics():
    (link,) = memory_links(1)
    balancer = Balancer(MoEShape(2, 4, 1), Topology(ranks=1, slots_per_rank=4), group=link, weights=None)
    found = balancer.statistics()
    balancer.close()
    return found


def test_names_and_labels_are_frozen(statistics):
    full = replace(statistics, imbalance=1.2, imbalance_p50=1.1, imbalance_p95=1.3, imbalance_worst=1.4)
    found = {}
    for name, labels in scrape(full):
        key = (name, labels[0][0] if labels else None)
        found.setdefault(key, set()).update(value for _, value in labels)
    assert found == NAMES
    assert NAMES["isotherm_failures_total", "kind"] == set(FAILURE_KINDS)


def test_values_are_those_of_the_statistics(statistics):
    told = replace(
        statistics,
        state=State.DEGRADED,
        progress_seconds=12.5,
        plans=3,
        moves=7,
        moved_bytes=99,
        waits=2,
        failures=Failures(transfer_failed=4),
        imbalance_p50=1.1,
        imbalance_p95=1.3,
        imbalance_worst=1.4,
    )
    found = scrape(told)
    assert found["isotherm_state", (("state", "degraded"),)] == 1
    assert sum(value for (name, _), value in found.items() if name == "isotherm_state") == 1
    assert found["isotherm_last_progress_timestamp_seconds", ()] == 12.5
    assert [found[f"isotherm_{name}_total", ()] for name in ("plans", "moves", "moved_bytes", "waits")] == [
        3,
        7,
        99,
        2,
    ]
    assert found["isotherm_failures_total", (("kind", "transfer_failed"),)] == 4
    assert found["isotherm_failures_total", (("kind", "stalled"),)] == 0
    quantiles = [found["isotherm_imbalance_ratio", (("quantile", each),)] for each in ("0.5", "0.95", "1")]
    assert quantiles == [1.1, 1.3, 1.4]


def test_before_the_first_window_there_is_no_imbalance_to_tell(statistics):
    assert statistics.imbalance is None
    assert not [name for name, _ in scrape(statistics) if name == "isotherm_imbalance_ratio"]


def test_a_missing_extra_is_told_with_the_command_that_installs_it():
    program = "import sys; sys.modules['prometheus_client'] = None; import isotherm.observe.metrics"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "pip install 'isotherm[metrics]'" in done.stderr
