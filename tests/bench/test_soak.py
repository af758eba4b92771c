"""Some seconds of the soak, and that it would notice."""

import json
from collections import deque

import numpy as np
import pytest

from isotherm.bench import soak
from isotherm.bench.options import BenchOptions
from isotherm.bench.ranks import run_ranks
from isotherm.bench.soak import measure_soak, soak_on_ranks
from isotherm.bench.soak_engine import SoakEngine
from isotherm.bench.soak_rounds import MISHAPS, SoakRounds, draw_mishaps
from isotherm.cli.bench import run_bench
from isotherm.testing.faults import HastyTransport


class Miscounted(deque):
    """Windows that tell one token more of one expert, and one less of another."""

    def append(self, window):
        window.heat_KSLE.flags.writeable = True
        window.heat_KSLE[0, 0, 0, :2] += np.array([1, -1])
        super().append(window)


def sabotage_and_soak(seconds):
    engine = SoakEngine(5, HastyTransport)
    engine.windows = Miscounted()
    engine.balancer.on_window(engine.windows.append)
    spoilt = SoakRounds(engine, 5, pause_seconds=0.5, give_up_seconds=60).make_round("nothing")
    engine.close()
    return spoilt, soak_on_ranks(seconds, 3, 0.5)


@pytest.fixture(scope="module")
def records():
    return run_ranks(sabotage_and_soak, 10.0)


def test_a_slot_that_never_got_its_weights_and_a_wrong_count_are_found(records):
    spoilt, _ = records
    assert spoilt.recovered
    assert spoilt.wrong_tokens > 0
    assert spoilt.unequal > 0
    assert 0 < spoilt.windows == spoilt.wrong_windows


def test_ten_seconds_of_faults_leave_no_trace(records, monkeypatch, capsys):
    _, record = records
    assert len(record.rounds) >= 3
    mishaps = draw_mishaps(3)
    assert [each.mishap for each in record.rounds] == [next(mishaps) for _ in record.rounds]
    assert all(each.windows > 0 and each.moves > 0 for each in record.rounds)
    for each in record.rounds:
        assert each.told == (each.mishap.split()[0] in ("planner", "wrong", "transfer")), each.mishap
    assert record.statistics.moves == sum(each.moves for each in record.rounds)
    assert record.tokens > record.statistics.steps
    monkeypatch.setattr(soak, "run_ranks", lambda *arguments: record)
    assert run_bench(BenchOptions("soak", json=True, minutes=1 / 6, seed=3)) == 0
    told = capsys.readouterr()
    assert "--seed 3" in told.err
    assert all(target["ok"] for target in json.loads(told.out)["targets"])


def test_what_is_wrong_makes_the_exit_code_1(records, monkeypatch, capsys):
    spoilt, record = records
    spoilt_record = soak.SoakRecord((spoilt,), record.statistics, 100, 2)
    monkeypatch.setattr(soak, "run_ranks", lambda *arguments: spoilt_record)
    assert run_bench(BenchOptions("soak")) == 1
    text = capsys.readouterr().out
    for name in ("tokens unlike", "windows with wrong counts", "replicas that were not", "threads more"):
        assert f"falls short: soak: {name}" in text


def test_every_mishap_has_its_turn_before_one_comes_twice():
    mishaps = draw_mishaps(7)
    drawn = [next(mishaps) for _ in range(3 * len(MISHAPS))]
    for first in range(0, len(drawn), len(MISHAPS)):
        assert sorted(drawn[first : first + len(MISHAPS)]) == sorted(MISHAPS)
    assert drawn[: len(MISHAPS)] != drawn[len(MISHAPS) : 2 * len(MISHAPS)]


@pytest.mark.parametrize("wrong", [{"minutes": 0.0}, {"pause_seconds": -1.0}])
def test_times_must_be_above_0(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* must be above 0"):
        measure_soak(**{"minutes": 1.0, "pause_seconds": 1.0, **wrong}, seed=1, tell=print)
