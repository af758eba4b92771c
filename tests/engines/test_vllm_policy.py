"""Isotherm behind vLLM's policy interface: what is answered, agreed on, recorded, and done when it fails."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from llvmlite.binding import ffi

import isotherm_vllm
from isotherm import read_heat
from isotherm.engines.vllm import agreement
from isotherm.engines.vllm.agreement import same_on_all
from isotherm.engines.vllm.handed import HandedWindows
from isotherm.engines.vllm.placing import place_experts
from isotherm.engines.vllm.plugin import _let_vllm_look_at_llvmlite
from isotherm.engines.vllm.policy import EplbPlanner
from isotherm.engines.vllm.settings import VllmSettings
from isotherm.topology import Topology
from ranks import run_ranks

LOADS = torch.tensor([[90, 30, 20, 10], [10, 10, 80, 10]], dtype=torch.int32)
HELD = torch.tensor([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 0, 1]])
TOPOLOGY = Topology(ranks=2, slots_per_rank=3)


class Stock:
    """The policy that the engine came with: counts its calls, and answers with what nobody else would."""

    calls = 0

    @classmethod
    def rebalance_experts(cls, weight: torch.Tensor, num_replicas: int, *_: Any) -> torch.Tensor:
        cls.calls += 1
        return torch.full((len(weight), num_replicas), 3)


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    Stock.calls = 0


def have_it(goal_LP: np.ndarray | None) -> bool:
    return goal_LP is not None


def test_the_class_that_is_registered_plans_with_ours() -> None:
    policy = EplbPlanner(Stock, agree=have_it).as_policy()
    assert issubclass(policy, Stock)
    goal = policy.rebalance_experts(LOADS, 6, 1, 1, 2, HELD)  # type: ignore[attr-defined]
    assert (goal.dtype, goal.device.type) == (torch.int64, "cpu")
    np.testing.assert_array_equal(goal, place_experts(LOADS.numpy(), TOPOLOGY, HELD.numpy()))
    by_name = policy.rebalance_experts(  # type: ignore[attr-defined]
        weight=LOADS, num_replicas=6, num_groups=1, num_nodes=1, num_ranks=2, old_global_expert_indices=HELD
    )
    assert torch.equal(goal, by_name)
    assert Stock.calls == 0


def test_a_failure_falls_back_to_the_engines_policy_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any, **__: Any) -> np.ndarray:
        raise ZeroDivisionError("by design")

    planner = EplbPlanner(Stock, agree=have_it, place=broken)
    with caplog.at_level(logging.WARNING, "isotherm"):
        for _ in range(3):
            assert (planner.rebalance_experts(LOADS, 6, 1, 1, 2, HELD) == 3).all()
    assert Stock.calls == 3
    assert ["by design" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("broken", [False, True])
def test_a_plan_that_ranks_do_not_share_is_not_used(broken: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The rank is asked even where it has no plan itself: the others wait for its answer."""
    asked: list[bool] = []

    def disagree(goal_LP: np.ndarray | None) -> bool:
        asked.append(goal_LP is not None)
        if broken:
            raise RuntimeError("connection closed by peer")
        return False

    planner = EplbPlanner(Stock, agree=disagree)
    assert (planner.rebalance_experts(LOADS, 6, 1, 1, 2, HELD) == 3).all()
    assert (planner.rebalance_experts(LOADS, 5, 1, 1, 2, HELD) == 3).all()  # 5 slots on 2 ranks: no plan
    assert asked == [True, False]
    assert len(caplog.records) == 1
    assert ("could not compare" if broken else "another rank made another plan") in caplog.text


def leave_with_a_failure(rank: int) -> list[int]:
    """Two ranks of vLLM, of which the second is about to leave and cannot plan, ask for the plan of one."""
    parallel_state: Any = ModuleType("vllm.distributed.parallel_state")
    parallel_state._EPLB = SimpleNamespace(cpu_group=dist.group.WORLD, rank_in_group=rank)
    distributed: Any = ModuleType("vllm.distributed")
    distributed.parallel_state = parallel_state
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm", ModuleType("vllm"))
        patch.setitem(sys.modules, "vllm.distributed", distributed)
        planner = EplbPlanner(Stock)
        if rank:
            planner._place = lambda *_, **__: 1 / 0  # type: ignore[assignment]
        goal: list[int] = planner.rebalance_experts(LOADS[:1], 4, 1, 1, 1, HELD[:1]).flatten().tolist()
    return goal


def agree_on_ranks(rank: int) -> tuple[list[bool], list[int]]:
    group = dist.group.WORLD
    assert group is not None
    same, other = np.arange(6), np.arange(6) + rank
    answers = [
        same_on_all(same, group),
        same_on_all(other, group),
        same_on_all(None if rank else same, group),
        same_on_all(None, group),
    ]
    return answers, leave_with_a_failure(rank)


def test_ranks_agree_only_where_all_have_the_same_plan_those_that_leave_too(tmp_path: Path) -> None:
    """All move weights by the plan; one that has another answers with the wrong experts."""
    stock = Stock.rebalance_experts(LOADS[:1], 4).flatten().tolist()
    assert run_ranks(agree_on_ranks, 2, tmp_path) == [([True, False, False, False], stock)] * 2


@pytest.mark.parametrize(("rank", "first"), [(None, True), (0, True), (1, False)])
def test_one_rank_of_engines_that_are_worlds_of_their_own_is_the_first(
    rank: int | None, first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under elastic expert parallelism, where each engine is rank 0 of itself."""
    coordinator = None if rank is None else SimpleNamespace(rank_in_group=rank)
    monkeypatch.setattr(agreement, "_eplb_coordinator", lambda: coordinator)
    assert agreement.is_first_rank() == first


def test_a_disk_without_room_costs_the_recording_and_no_plan(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planner = EplbPlanner(Stock, agree=have_it, windows=HandedWindows(tmp_path / "a.heat", lambda: True))
    resource = pytest.importorskip("resource", reason="sizes of files are limited on POSIX")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        for _ in range(2):
            planner.rebalance_experts(LOADS, 6, 1, 1, 2, HELD)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert Stock.calls == 0
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [
        " what vLLM hands over is not recorded"
    ]


def test_what_is_handed_over_is_recorded_by_the_first_rank_alone(tmp_path: Path) -> None:
    for rank in range(2):
        windows = HandedWindows(tmp_path / f"{rank}.heat", lambda rank=rank: rank == 0)  # type: ignore[misc]
        planner = EplbPlanner(Stock, agree=have_it, windows=windows)
        moved = planner.rebalance_experts(LOADS, 6, 1, 1, 2, HELD)
        planner.rebalance_experts(torch.ones_like(LOADS), 6, 1, 1, 2, moved)  # profiling: no window
        planner.rebalance_experts(2 * LOADS, 6, 1, 1, 2, moved)
        windows.close()
    assert not (tmp_path / "1.heat").exists()
    trace = read_heat(tmp_path / "0.heat")
    assert (trace.header.topology, trace.header.kinds) == (TOPOLOGY, ("all",))
    np.testing.assert_array_equal([window.heat_LE for window in trace], [LOADS, 2 * LOADS])
    held = [(index, placement.slot_to_expert.tolist()) for index, placement in trace.placements]
    assert held == [(0, HELD.tolist()), (1, moved.tolist())]


def test_a_recording_goes_on_in_its_file_and_another_models_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "engine.heat"
    for loads in (LOADS, 3 * LOADS, LOADS[:, :3]):
        windows = HandedWindows(path, lambda: True)
        windows.keep(loads.numpy(), TOPOLOGY, None)
        windows.keep(loads.numpy()[:, :2], TOPOLOGY, None)  # a draft model's
        windows.close()
    np.testing.assert_array_equal([window.heat_LE for window in read_heat(path)], [LOADS, 3 * LOADS])
    assert "start another file" in caplog.text


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ISOTHERM_VLLM": "yes"}, "neither 0 nor 1"),
        ({"ISOTHERM_RECORD": "a.heat"}, "ISOTHERM_VLLM=1"),
        ({"ISOTHERM_OBSERVE_PORT": "9000"}, "ISOTHERM_OBSERVE"),
        ({"ISOTHERM_VLLM": "1", "ISOTHERM_VLLM_MAX_IMBALANCE": "0.9"}, "a number, at least 1"),
        ({"ISOTHERM_VLLM": "1", "ISOTHERM_VLLM_MAX_IMBALANCE": "inf"}, "a number, at least 1"),
        (
            {"ISOTHERM_OBSERVE": "a.heat", "ISOTHERM_OBSERVE_STEPS": "2.5"},
            "whole number from 2 to 2147483648",
        ),
        ({"ISOTHERM_OBSERVE": "a.heat", "ISOTHERM_OBSERVE_PORT": "70000"}, "65535"),
    ],
)
def test_settings_that_cannot_be_are_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        VllmSettings.of(environment)


def test_settings_are_what_the_environment_says() -> None:
    assert VllmSettings.of({"ISOTHERM_VLLM": "", "PATH": "/bin"}) == VllmSettings()
    given = VllmSettings.of(
        {
            "ISOTHERM_VLLM": "1",
            "ISOTHERM_VLLM_MAX_IMBALANCE": "1.1",
            "ISOTHERM_RECORD": "handed.heat",
            "ISOTHERM_OBSERVE": "seen.heat",
            "ISOTHERM_OBSERVE_STEPS": "64",
            "ISOTHERM_OBSERVE_PORT": "9400",
        }
    )
    assert given == VllmSettings(True, 1.1, Path("handed.heat"), Path("seen.heat"), 64, 9400)


def test_vllm_may_look_at_what_numba_brings_along() -> None:
    """vLLM for CPUs reads the attributes of all that modules hold as dictionaries; llvmlite's library answers
    to any name."""
    _let_vllm_look_at_llvmlite()
    assert vars(ffi.lib).get("kernel") is None


def test_vllm_finds_nothing_in_the_door_unless_it_is_asked_for() -> None:
    """Whoever has Isotherm installed and does not use it pays nothing for it."""
    program = (
        "import isotherm_vllm, sys; isotherm_vllm.register();"
        "sys.exit(str({'isotherm', 'numba', 'numpy', 'torch', 'vllm'} & sys.modules.keys()))"
    )
    bare = {"PATH": "", "PYTHONPATH": ":".join(filter(None, sys.path)), "ISOTHERM_VLLM": ""}
    done = subprocess.run(
        [sys.executable, "-S", "-c", program], env=bare, capture_output=True, text=True, check=False
    )
    assert done.stderr.strip() == "set()"


def test_what_fails_at_the_door_leaves_vllm_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # as where it is not installed
    monkeypatch.setenv("ISOTHERM_VLLM", "1")
    isotherm_vllm.register()
    assert "vLLM goes on without Isotherm" in caplog.text
