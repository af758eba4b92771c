"""The benchmark of routing: its batches, its rules, and that it runs. Never a time."""

import json

import numpy as np
import pytest

from isotherm.bench import route_achieved
from isotherm.bench.figures import Report
from isotherm.bench.options import BenchOptions
from isotherm.bench.route_achieved import count_crossing
from isotherm.bench.route_batches import draw_ids
from isotherm.bench.route_rules import (
    by_shares,
    even_hash,
    levelled,
    near_first,
    nearest_replica,
    one_per_source,
)
from isotherm.cli.bench import run_bench
from isotherm.placement import Placement
from isotherm.planner import plan
from isotherm.topology import Topology

TOPOLOGY = Topology(ranks=4, slots_per_rank=3, nodes=2)
PLACEMENT = Placement(np.array([[0, 1, 2, 0, 3, 4, 1, 5, 2, 0, 6, 7]] * 2), 8)


def test_no_expert_comes_twice_and_each_as_often_as_its_heat_says():
    heat_E = np.array([1.0, 2, 3, 4, 5, 6, 7, 12])
    ids_TK = draw_ids(heat_E, 3, 20_000, np.random.default_rng(0))
    assert ids_TK.shape == (20_000, 3)
    assert all(len(set(row)) == 3 for row in ids_TK.tolist())
    chance_E = 3 * heat_E / heat_E.sum()
    sigma_E = np.sqrt(20_000 * chance_E * (1 - chance_E))
    assert (np.abs(np.bincount(ids_TK.ravel(), minlength=8) - 20_000 * chance_E) < 4 * sigma_E).all()


def test_two_experts_keep_no_company():
    ids_TK = draw_ids(np.ones(8), 2, 20_000, np.random.default_rng(1))
    together = np.zeros((8, 8))
    np.add.at(together, (ids_TK[:, 0], ids_TK[:, 1]), 1)
    pairs = (together + together.T)[np.triu_indices(8, 1)]
    assert pairs == pytest.approx(20_000 / 28, rel=0.35)


def test_an_expert_that_every_token_would_want_twice_is_chosen_once():
    ids_TK = draw_ids(np.array([100.0, 1, 1, 2]), 2, 400, np.random.default_rng(2))
    assert (ids_TK == 0).sum(axis=1).tolist() == [1] * 400
    assert (ids_TK == 3).sum() == pytest.approx(200, abs=50)


def test_traffic_is_what_a_look_at_each_token_counts():
    rng = np.random.default_rng(3)
    topology = Topology(ranks=6, slots_per_rank=1, nodes=3)
    to_TK = rng.integers(0, 6, (50, 4))
    pairs = [(rank != 3, rank // 2 != 1) for rank in to_TK.ravel()]
    token_nodes = sum(len({rank // 2 for rank in row} - {1}) for row in to_TK.tolist())
    wanted = [sum(a for a, _ in pairs), sum(b for _, b in pairs), token_nodes]
    assert count_crossing(to_TK, 3, topology).tolist() == wanted


def test_rules_of_engines_choose_as_they_say():
    ids_TK = np.arange(8)[None].repeat(40, axis=0)
    nearest = nearest_replica(PLACEMENT, TOPOLOGY)
    assert nearest(0, 1, 0, ids_TK)[0, :3].tolist() == [0, 1, 2]  # its own
    assert nearest(3, 1, 0, ids_TK)[0, :3].tolist() == [9, 6, 8]  # its own, else the node's
    assert len(set(nearest(1, 1, 0, ids_TK)[:, 0].tolist())) == 1
    assert one_per_source(PLACEMENT)(1, 0, 0, ids_TK)[7].tolist() == [3, 6, 8, 4, 5, 7, 10, 11]
    hashed = even_hash(PLACEMENT)(2, 0, 0, ids_TK)
    for expert, slots in enumerate(([0, 3, 9], [1, 6], [2, 8])):
        counts = np.bincount(hashed[:, expert], minlength=12)
        assert set(np.flatnonzero(counts)) == set(slots)


def test_ours_serve_every_pair_by_a_replica_of_its_expert():
    heat_LE = np.exp(np.random.default_rng(4).normal(0, 0.7, (2, 8)))
    made = plan(heat_LE, TOPOLOGY)
    ids_TK = draw_ids(heat_LE[1], 2, 300, np.random.default_rng(5))
    for rule in (by_shares(made, TOPOLOGY), near_first(made, TOPOLOGY), levelled(made, TOPOLOGY, heat_LE)):
        slots_TK = rule(2, 1, 7, ids_TK)
        assert (made.placement.slot_to_expert[1][slots_TK] == ids_TK).all()


def test_a_quick_run_holds_every_way_to_its_targets(monkeypatch, capsys):
    monkeypatch.setattr(route_achieved, "BATCHES", {1024: 1})
    assert run_bench(BenchOptions("route", json=True, quick=True)) == 0
    report = Report.from_dict(json.loads(capsys.readouterr().out))
    timed, achieved, stale, _ = report.sections
    assert {figure.column for figure in timed.figures} >= {"torch.take", "by shares", "batch levelled"}
    for section in report.sections:
        for figure in section.figures:
            assert figure.low <= figure.value <= figure.high, figure
    ratio = {
        way: achieved.figure(f"1,024 tokens a rank, {way}", "of planned").value
        for way in ("nearest replica", "ours", "ours, batch levelled")
    }
    assert ratio["nearest replica"] < ratio["ours"] < ratio["ours, batch levelled"]
    assert achieved.figure("1,024 tokens a rank, ours", "of the batch").value == pytest.approx(1, abs=0.005)
    for name in ("across ranks", "across nodes"):
        planned, near, plain = (
            achieved.figure(f"1,024 tokens a rank, {way}", name).value
            for way in ("ours, planned for it, near first", "ours, near first", "ours")
        )
        assert planned < near < plain
    row = "planned on first, served far"
    late, best, as_planned = (
        stale.figure(row, name).value for name in ("one window late", "best", "as planned")
    )
    assert as_planned < late <= best
    assert len(report.targets) == 3 + 5 + 6 + 8
