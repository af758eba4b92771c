"""vLLM generates with and without Isotherm: the same tokens, and the heat that vLLM itself routed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from isotherm import HeatTrace, read_heat

PROGRAM = str(Path(__file__).parent / "vllm_generate.py")
WINDOW = 2
EXPERTS = {"qwen3_moe": 16, "mixtral": 8}
TOKENS = [20 + 21 + 22 + 23, 4 * 7]
"""Of the prompts, and of the answers: the last token of an answer is not computed with."""


@dataclass(frozen=True)
class Run:
    folder: Path
    tokens: list[list[int]]
    said: str

    @property
    def family(self) -> str:
        return str(json.loads((self.folder / "config.json").read_text())["model_type"])

    @property
    def heat(self) -> HeatTrace:
        return read_heat(self.folder / "seen.heat")


def run_vllm(folder: Path, *arguments: str, observed: bool, record: bool = False) -> Run:
    """A run of the program, alone, with Isotherm asked for by the environment, or under `isotherm record`."""
    folder.mkdir()
    command = [sys.executable, PROGRAM, str(folder), str(folder / "answers.json"), *arguments]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("ISOTHERM_")}
    if observed:
        environment["ISOTHERM_VLLM"] = "1"
        heat = str(folder / "seen.heat")
        if record:
            isotherm = [sys.executable, "-m", "isotherm", "record", "--out", heat]
            command = [*isotherm, "--window-steps", str(WINDOW), "--", *command]
        else:
            environment |= {"ISOTHERM_OBSERVE": heat, "ISOTHERM_OBSERVE_STEPS": str(WINDOW)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    return Run(folder, json.loads((folder / "answers.json").read_text())["tokens"], done.stdout + done.stderr)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_vllm(tmp_path_factory.mktemp("stock") / "run", observed=False)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """vLLM's usual processes, under `isotherm record`."""
    return run_vllm(tmp_path_factory.mktemp("recorded") / "run", observed=True, record=True)


@pytest.fixture(scope="module", params=["qwen3_moe", "mixtral"])
def routed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process, in which vLLM's own capturer looks on."""
    folder = tmp_path_factory.mktemp(request.param) / "run"
    arguments = ["--family", request.param, "--alone", "--routed", str(folder / "routed.npz")]
    return run_vllm(folder, *arguments, observed=True)


def test_every_token_is_the_same_with_isotherm(stock: Run, recorded: Run) -> None:
    assert "isotherm:" not in stock.said
    assert [len(answer) for answer in stock.tokens] == [8] * 4
    assert recorded.tokens == stock.tokens


def test_the_engines_own_processes_have_our_policy_and_observe(recorded: Run) -> None:
    """As vLLM's log says, whose lines name the process."""
    lines = [line for line in recorded.said.splitlines() if line.startswith(("(EngineCore", "(Worker"))]
    assert any("isotherm: plans vLLM's expert balancing" in line for line in lines)
    assert any("isotherm: heat of 2 MoE layers goes to" in line for line in lines)


def test_the_heat_is_that_of_the_experts_that_vllm_routed_to(routed: Run) -> None:
    trace = routed.heat
    with np.load(routed.folder / "routed.npz") as kept:
        steps = len(kept.files) // 2
        ids = [kept[f"ids{step}"] for step in range(steps)]
        decode = [kept[f"decode{step}"] for step in range(steps)]
    assert any(each.any() and not each.all() for each in decode), "no step mixed prefill and decode"
    assert [window.end_step for window in trace] == list(range(WINDOW, steps + WINDOW, WINDOW))
    experts = trace.header.experts
    for window in trace:
        span = range(window.start_step, min(window.end_step, steps))
        for kind in range(2):
            rows = [ids[step][decode[step] == bool(kind)] for step in span]
            assert window.tokens_K[kind] == sum(map(len, rows))
            for place, layer in enumerate(trace.layer_ids):
                chosen = np.concatenate([row[:, layer].ravel() for row in rows]).astype(np.int64)
                wanted = np.bincount(chosen, minlength=experts)
                np.testing.assert_array_equal(window.heat_KSLE[kind].sum(axis=0)[place], wanted)


def test_dense_layers_are_told_from_moe_layers(routed: Run) -> None:
    assert routed.heat.layer_ids == ((0, 2) if routed.family == "qwen3_moe" else (0, 1, 2))
    assert routed.heat.header.experts == EXPERTS[routed.family]


def check_totals(run: Run) -> None:
    """What a step holds depends on when requests arrive; what all of them hold does not."""
    heat_KLE = sum(window.heat_KSLE.sum(axis=1) for window in run.heat)
    tokens_K = sum(window.tokens_K for window in run.heat)
    assert tokens_K.tolist() == TOKENS
    assert heat_KLE.sum(axis=2).tolist() == [[4 * count] * 2 for count in TOKENS]


def test_other_processes_lose_no_token(recorded: Run) -> None:
    check_totals(recorded)


def test_two_tensor_parallel_ranks_count_each_token_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # two ranks on as few cores as there are
    check_totals(run_vllm(tmp_path / "run", "--tensor-parallel", "2", observed=True))


def test_a_compiled_model_counts_the_same_and_answers_the_same(routed: Run, tmp_path: Path) -> None:
    family = routed.family
    compiled = run_vllm(tmp_path / "run", "--family", family, "--compiled", "--alone", observed=True)
    assert compiled.tokens == routed.tokens
    for one, other in zip(compiled.heat, routed.heat, strict=True):
        np.testing.assert_array_equal(one.heat_KSLE, other.heat_KSLE)
