"""Some seconds of the soak, and of the benchmark of moving, and that they would notice."""

import json
import threading
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from isotherm import Placement
from isotherm.bench import move, move_engine, soak
from isotherm.bench.accounts import read_accounts
from isotherm.bench.engine import EP2
from isotherm.bench.move import measure_on_ranks
from isotherm.bench.move_engine import BYTES_PER_EXPERT, MOVES, PER_STEP
from isotherm.bench.move_steps import accounts_section
from isotherm.bench.options import BenchOptions
from isotherm.bench.ranks import run_ranks
from isotherm.bench.soak import measure_soak, soak_on_ranks
from isotherm.bench.soak_engine import SoakEngine
from isotherm.bench.soak_pairs import MISHAPS, Pairs, draw_mishaps, states_of
from isotherm.bench.soak_rounds import SoakRounds
from isotherm.bench.soak_strike import Strike
from isotherm.cli.bench import run_bench
from isotherm.status import Failures, State
from isotherm.testing.faults import HastyTransport

SEED = 2131
MET_FIRST = [
    ("link breaks", State.DEGRADED),
    ("planner raises", State.PLANNING),
    ("transfer fails", State.DEGRADED),
]
"""What that seed draws."""

# The processes may have kernels to compile first.
pytestmark = pytest.mark.timeout(300)


class Miscounted(deque):
    """Windows that tell one token more of one expert, and one less of another."""

    def append(self, window):
        window.heat_KSLE.flags.writeable = True
        window.heat_KSLE[0, 0, 0, :2] += np.array([1, -1])
        super().append(window)


def serve(seconds):
    """What starts processes: one after the other in the same two."""
    engine = SoakEngine(5, HastyTransport)
    engine.windows = Miscounted()
    engine.balancer.on_window(engine.windows.append)
    spoilt = SoakRounds(engine, 5, pause_seconds=0.5, give_up_seconds=60).make_round("nothing")
    engine.close()
    return spoilt, soak_on_ranks(seconds, SEED, 0.5), measure_on_ranks(quick=True)


@pytest.fixture(scope="module")
def records():
    return run_ranks(serve, 10.0)


def test_a_slot_that_never_got_its_weights_and_a_wrong_count_are_found(records):
    spoilt, *_ = records
    assert spoilt.recovered
    assert spoilt.wrong_tokens > 0
    assert spoilt.unequal > 0
    assert 0 < spoilt.windows == spoilt.wrong_windows


def test_ten_seconds_of_faults_leave_no_trace(records, monkeypatch, capsys):
    _, record, _ = records
    assert len(record.rounds) >= 3
    mishaps = draw_mishaps(SEED)
    assert [each.mishap for each in record.rounds] == [next(mishaps) for _ in record.rounds]
    assert [(each.mishap, each.struck_in) for each in record.rounds[:3]] == MET_FIRST
    assert all(each.windows > 0 and each.moves > 0 for each in record.rounds)
    for each in record.rounds:
        # A busy machine may make others late too.
        assert each.told or each.mishap.split()[0] not in ("planner", "wrong", "transfer", "link"), (
            each.mishap
        )
    assert record.statistics.moves == sum(each.moves for each in record.rounds)
    assert record.tokens > record.statistics.steps
    monkeypatch.setattr(soak, "run_ranks", lambda *arguments: record)
    assert run_bench(BenchOptions("soak", json=True, minutes=1 / 6, seed=SEED)) == 0
    told = capsys.readouterr()
    assert f"--seed {SEED}" in told.err
    report = json.loads(told.out)
    assert all(target["ok"] for target in report["targets"])
    [states] = [section for section in report["sections"] if section["title"] == "Met in which state"]
    times = {(figure["row"], figure["column"]): figure["value"] for figure in states["figures"]}
    for mishap, state in MET_FIRST:
        assert times[mishap, state.value] >= 1
    assert ("transfer late", "observing") not in times
    assert "transfer late while observing, planning, degraded: all weights of a round" in states["note"]


def test_what_is_wrong_makes_the_exit_code_1(records, monkeypatch, capsys):
    spoilt, record, _ = records
    spoilt_record = soak.SoakRecord((spoilt,), record.statistics, 100, 2)
    monkeypatch.setattr(soak, "run_ranks", lambda *arguments: spoilt_record)
    assert run_bench(BenchOptions("soak")) == 1
    text = capsys.readouterr().out
    for name in ("tokens unlike", "windows with wrong counts", "replicas that were not", "threads more"):
        assert f"falls short: soak: {name}" in text


def test_moving_is_measured_while_weights_move(records, monkeypatch, capsys):
    *_, record = records
    assert [each.moves for each in record.published] == [MOVES] * len(record.published)
    assert len(record.published) >= 2
    assert all(each.steps >= MOVES // PER_STEP for each in record.published)
    assert record.wire_bytes == record.planned_bytes == len(record.published) * MOVES * BYTES_PER_EXPERT
    assert record.copied_bytes == 0
    assert list(record.calls_ms) == ["off", "observing", "moving"]
    assert {samples.shape for samples in record.calls_ms.values()} == {(12, 3)}
    assert all((samples > 0).all() for samples in record.calls_ms.values())
    for accounts_TA in record.accounts_ms.values():
        wall_T, engine_T, others_T, waited_T = accounts_TA.T
        # No thread of one rank has more than the time on the wall, and clocks of two kinds differ a little.
        assert (engine_T <= 1.02 * wall_T).all()
        assert (others_T >= 0).all()
        assert (np.isnan(waited_T) | (waited_T >= 0)).all()
    monkeypatch.setattr(move, "run_ranks", lambda *arguments: replace(record, copied_bytes=1, wire_bytes=0))
    assert run_bench(BenchOptions("move", quick=True)) == 0
    told = capsys.readouterr()
    assert "observing and moving" in told.err
    for name in ("bytes of weights copied", "bytes on the wire"):
        assert f"falls short: move: {name}" in told.out
    for name in ("beyond torch.take of the same ids", "moving - off, beyond other threads"):
        assert name in told.out


def test_other_threads_are_told_from_the_one_that_asks():
    before = read_accounts()
    other = threading.Thread(target=sum, args=(range(3_000_000),))
    other.start()
    other.join()
    _, engine, others, waited = read_accounts() - before
    assert 0 <= engine < others
    assert np.isnan(waited) or waited >= 0


def test_what_a_placement_needs_anyway_is_not_counted_as_ours(records):
    *_, record = records
    samples_N3 = np.array([[0.01, 0.3, 0.25], [0.03, 0.3, 0.25], [0.02, 0.3, 0.25]])
    section = move._calls(replace(record, calls_ms=dict.fromkeys(record.calls_ms, samples_N3)))
    assert section.figure("moving", "both").value == pytest.approx(0.32)
    assert section.figure("moving", "both - torch.take").value == pytest.approx(0.07)
    reached = {target.name: target.ok for target in section.targets}
    assert reached["all calls of a step while moving, beyond torch.take of the same ids, CPU ms"]
    assert not reached["all calls of a step while moving, mapping included, CPU ms"]


def accounts(*steps):
    """Twenty turns of the same block: wall, engine, other threads, waiting."""
    return {
        name: np.tile(np.array(each, float), (20, 1))
        for name, each in zip(("off", "observing", "moving"), steps, strict=True)
    }


@pytest.mark.parametrize(("spare_cores", "beyond"), [(0, 0.5), (2, 3.5)])
def test_a_step_that_takes_longer_than_other_threads_explain_falls_short(spare_cores, beyond):
    taken = accounts([77, 76, 1, 1], [77.5, 76, 1.5, 1.5], [80.5, 76.5, 4, 4])
    section = accounts_section("", taken, spare_cores=spare_cores)
    assert section.figure("moving - off", "others' CPU").value == pytest.approx(3)
    assert section.figure("moving - off", "asleep").value == pytest.approx(0)
    assert section.figure("moving - off", "beyond others").value == pytest.approx(beyond)
    assert [target.ok for target in section.targets] == [False]


def test_a_step_that_gave_its_core_to_other_threads_is_explained_where_no_core_is_left():
    taken = accounts([77, 76, 1, np.nan], [77, 76, 1, np.nan], [80, 76, 4, np.nan])
    explained = accounts_section("", taken, spare_cores=0)
    assert explained.figure("moving - off", "beyond others").value == 0
    assert [target.ok for target in explained.targets] == [True]
    assert [target.ok for target in accounts_section("", taken, spare_cores=1).targets] == [False]
    with pytest.raises(KeyError):  # the system does not tell
        explained.figure("off", "no core")


def test_plans_on_purpose_move_as_many_experts_as_they_say_and_keep_all_of_them():
    placement = Placement.default(move_engine.SHAPE, EP2)
    for seed in range(4):
        plan = move_engine._plan_moves(placement, seed)
        changed = plan.placement.slot_to_expert != placement.slot_to_expert
        assert changed.sum() == len(plan.moves) == MOVES
        for experts_P in plan.placement.slot_to_expert:
            assert set(experts_P) == set(range(256))
            for half_S in np.split(experts_P, 2):
                assert len(set(half_S)) == len(half_S)
        placement = plan.placement


def test_weights_that_the_engines_thread_writes_are_seen():
    weights = [torch.zeros(4, 8, dtype=torch.uint8), torch.zeros(3)]
    with move_engine.WeightCopies(weights[:1]) as copies:
        weights[0][2].copy_(torch.ones(8, dtype=torch.uint8))
        weights[0][1, :3] = 7
        weights[1].add_(1)
        weights[0].sum()
    assert copies.written_bytes == 8 + 3


def test_every_mishap_has_its_turn_before_one_comes_twice():
    mishaps = draw_mishaps(7)
    drawn = [next(mishaps) for _ in range(3 * len(MISHAPS))]
    for first in range(0, len(drawn), len(MISHAPS)):
        assert sorted(drawn[first : first + len(MISHAPS)]) == sorted(MISHAPS)
    assert drawn[: len(MISHAPS)] != drawn[len(MISHAPS) : 2 * len(MISHAPS)]


def test_the_state_that_was_met_least_comes_next_and_each_that_can_be_comes():
    pairs, again = Pairs(5), Pairs(5)
    for mishap in MISHAPS:
        drawn = []
        for _ in states_of(mishap):
            drawn.append(pairs.next_state(mishap))
            assert pairs.next_state(mishap) is drawn[-1]  # until it is met
            pairs.count(mishap, drawn[-1])
        assert sorted(drawn, key=list(State).index) == list(states_of(mishap))
        assert drawn[:1] == [again.next_state(mishap)] * len(drawn[:1])
    assert pairs.next_state("nothing") is None
    assert states_of("transfer late") == (State.MOVING,)
    assert State.MOVING not in states_of("planner hangs")
    pairs.count("link breaks", State.OBSERVING)  # met, though another was wanted
    assert all(pairs.next_state("link breaks") is not State.OBSERVING for _ in range(3))


@pytest.mark.parametrize(
    ("mishap", "ushers"), [("rank pauses", "planner_raised"), ("planner hangs", "plan_refused")]
)
def test_failures_that_usher_another_in_are_not_taken_for_it(mishap, ushers):
    balancer = SimpleNamespace(rank=1)
    strike = Strike(SimpleNamespace(rank=1, steps=3, balancer=balancer), mishap, 0, State.DEGRADED, 1.0)
    # However many they were: two that meet one plan are one failure.
    assert strike.num_told(Failures(**{ushers: 3})) == 0
    assert strike.num_told(Failures(planner_late=1, **{ushers: 1})) == 1


@pytest.mark.parametrize("wrong", [{"minutes": 0.0}, {"pause_seconds": -1.0}])
def test_times_must_be_above_0(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.* must be above 0"):
        measure_soak(**{"minutes": 1.0, "pause_seconds": 1.0, **wrong}, seed=1, tell=print)
