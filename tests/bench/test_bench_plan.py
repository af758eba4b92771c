"""The benchmark of plans: that it runs, says what it says, and would notice. Never a time."""

import json
import subprocess
import sys

import numpy as np
import pytest

from isotherm import planner
from isotherm.bench.figures import Report
from isotherm.bench.options import BenchOptions
from isotherm.bench.plan_cases import measure_plans
from isotherm.bench.plan_fresh import FIXTURE_OPTIMUM, measure_fixture
from isotherm.bench.plan_heat import FILES, read_heats
from isotherm.bench.plan_life import _timed_kernels
from isotherm.cli.bench import run_bench
from isotherm.planner import plan, policies
from isotherm.topology import Topology


def bench(*arguments):
    command = [sys.executable, "-m", "isotherm", "bench", "plan", "--json", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.timeout(300)
def test_a_quick_run_names_every_policy_and_holds_figures_to_their_limits(tmp_path):
    rng = np.random.default_rng(3)
    for name in FILES:
        counts = np.exp(rng.normal(0, 0.6, (4, 256))) * 1000
        counts[0] = 0  # a dense layer
        (tmp_path / name).write_text(json.dumps({"logical_count": counts.astype(int).tolist()}))
    done = bench("--quick", "--traces", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = Report.from_dict(json.loads(done.stdout))
    rows = {figure.row for section in report.sections for figure in section.figures}
    for policy in policies():
        assert any(policy in row for row in rows), policy
    for target in report.targets:
        reached = target.value >= target.limit if target.at_least else target.value <= target.limit
        assert target.ok == reached, target
    for section in report.sections:
        for figure in section.figures:
            assert figure.low <= figure.value <= figure.high, figure
            if figure.column in ("p50", "mean", "worst layer"):
                bound = section.figure(figure.row, "bound").value
                assert 0 < figure.value <= 1 + 1e-9, figure
                assert figure.column == "p50" or figure.value <= bound + 1e-9, figure


def test_a_folder_that_lacks_a_file_is_told(tmp_path):
    with pytest.raises(ValueError, match=f"--traces: .*{FILES[0]}"):
        run_bench(BenchOptions("plan", traces=tmp_path))
    with pytest.raises(ValueError, match="--traces is for bench plan"):
        run_bench(BenchOptions("heat", traces=tmp_path))


def test_what_is_reached_and_moved_is_that_of_the_plans():
    topology = Topology(ranks=4, slots_per_rank=5)
    heat_LE = np.exp(np.random.default_rng(0).normal(0, 0.7, (3, 16)))
    start = plan(heat_LE, topology, policy="static").placement
    made = plan(heat_LE, topology, start, max_imbalance=1.01)
    assert made.moves
    makes = [
        lambda: plan(heat_LE, topology, start, max_imbalance=1.01),
        lambda: plan(heat_LE, topology, start, policy="static"),
    ]
    measured = measure_plans("row", makes, quick=True)
    figures = {figure.column: figure.value for figure in measured.figures(moves=True)}
    assert figures["slots changed"] == pytest.approx(100 * len(made.moves) / 60)
    assert figures["worst layer"] == pytest.approx(1 / measured.plans[1].imbalance.max())
    assert figures["mean"] == pytest.approx(np.mean([1 / each.imbalance for each in measured.plans]))


def test_the_fixture_is_held_to_its_optimum():
    (target,) = measure_fixture().targets
    assert target.limit == pytest.approx(FIXTURE_OPTIMUM)
    assert target.value >= FIXTURE_OPTIMUM - 1e-9


def test_kernels_are_timed_from_python_and_given_back():
    before = dict(vars(planner.fresh.fresh))
    with _timed_kernels() as inside:
        plan(read_heats(None).first[:1], Topology(ranks=8, slots_per_rank=33))
        assert inside[0] > 0
    assert vars(planner.fresh.fresh) == before
