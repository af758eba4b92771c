"""`isotherm compare` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from replay.made import CLUSTER, STEP, drifting_windows, run, save


def test_policies_lengths_and_answers_in_words(tmp_path: Path, capsys) -> None:
    code, out, err = run(capsys, "compare", save(tmp_path), *CLUSTER)
    assert (code, err) == (0, "")
    assert "Planned on each window, served on the next, by isotherm" in out
    for policy in ("(no plan)", "incremental", "deepseek", "swift", "flash", "static", "random"):
        assert policy in out
    assert "Would balancing pay here? Yes: the work of the hottest ranks falls by 5% or more" in out
    assert "This is an upper bound" in out
    assert "Which window?" in out
    assert "How many redundant slots?" in out


def test_json_alone_and_the_step_that_is_known(tmp_path: Path, capsys) -> None:
    arguments = (
        "compare",
        save(tmp_path),
        *CLUSTER,
        *STEP,
        "--engine",
        "vllm",
        "--policy",
        "swift",
        "--json",
    )
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["engine"], report["policy"], report["windows"]) == ("vllm", "swift", 8)
    assert not report["step_time"]["is_upper_bound"]
    assert report["answer"] in ("yes", "no")
    assert len(report["policies"][0]["windows"]) == 7


def test_check_makes_a_no_one(tmp_path: Path, capsys) -> None:
    path = save(tmp_path, 3)
    assert run(capsys, "compare", path, *CLUSTER, "--check")[0] == 0
    # Weights so heavy that no plan is worth its move.
    costly = (*STEP[:4], "--expert-bytes", 10**13)
    code, out, _ = run(capsys, "compare", path, *CLUSTER, *costly, "--check")
    assert code == 1
    assert "Would balancing pay here? No:" in out
    assert run(capsys, "compare", path, *CLUSTER, *costly)[0] == 0


def test_one_matrix_is_not_enough_data(tmp_path: Path, capsys) -> None:
    path = tmp_path / "heat.npy"
    np.save(path, drifting_windows(1)[0].heat_LE)
    code, out, _ = run(capsys, "compare", path, *CLUSTER, "--check")
    assert code == 1
    assert "Not enough data: one matrix: no drift is visible" in out
    assert "Planned on one matrix, served on the same" in out


def test_rows_of_passes_keep_their_noise(tmp_path: Path, capsys) -> None:
    path, rng = tmp_path / "passes.npy", np.random.default_rng(0)
    np.save(path, rng.integers(1, 40, (24, 2, 8)))
    code, out, _ = run(capsys, "compare", path, *CLUSTER, "--window", 6, "--json")
    assert code == 0
    assert json.loads(out)["windows"] == 4
    code, out, _ = run(capsys, "compare", path, *CLUSTER, "--json")
    assert code == 0
    assert json.loads(out)["windows"] == 8  # a short trace in eighths
    code, _, err = run(capsys, "compare", path, *CLUSTER, "--window", 256)
    assert code == 2
    assert f"{path}: holds 24 steps, fewer than a window of 256" in err


def test_ids_of_tokens_are_served_in_batches(tmp_path: Path, capsys) -> None:
    path, rng = tmp_path / "ids.npz", np.random.default_rng(0)
    np.savez(path, experts=np.argsort(rng.random((400, 3, 8)), axis=2)[..., :2].astype(np.uint8))
    arguments = ("compare", path, *CLUSTER, "--batch", 10, "--window", 5)
    code, out, err = run(capsys, *arguments, "--max-windows", 3, "--json")
    assert code == 0
    assert json.loads(out)["windows"] == 3
    assert "40 batches of 10 tokens" in err
    assert "compared from step 25 on: --max-windows 3" in err


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_a_picture_is_drawn(tmp_path: Path, capsys, suffix: str) -> None:
    path = tmp_path / f"policies.{suffix}"
    assert run(capsys, "compare", save(tmp_path), *CLUSTER, "--plot", path)[0] == 0
    data = path.read_bytes()
    if suffix == "png":
        assert data.startswith(b"\x89PNG")
    else:
        assert b"Would balancing pay here?" in data


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--step-ms", 5), "--step-ms and --expert-share go together"),
        (("--step-ms", 0, "--expert-share", 0.5), "--step-ms 0.0 must be above 0"),
        (("--step-ms", "inf", "--expert-share", 0.5), "--step-ms inf must be above 0"),
        (("--kind", "prefill"), "--kind prefill: the file does not tell kinds of tokens apart"),
        (("--moe-layers", "3-1"), "--moe-layers 3-1: 3-1 ends before it begins"),
        (("--batch", 4), "--batch 4 is for ids of experts per token"),
        (("--window", 0), "--window 0 is below 1"),
        (("--window", 1000), "holds 64 steps, fewer than a window of 1000"),
        (("--max-windows", 0), "--max-windows 0 is below 1"),
        (("--policy", "best"), "policy='best' is unknown"),
        (("--ranks", 5), "do not divide over ranks=5"),
        (("--plot", "out.doc"), "--plot out.doc"),
    ],
)
def test_what_is_wrong_is_one_message(tmp_path: Path, capsys, arguments, message) -> None:
    code, out, err = run(capsys, "compare", save(tmp_path), *CLUSTER, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_the_sample_is_there(capsys) -> None:
    code, out, err = run(capsys, "compare", "sample", "--max-windows", 4, "--json")
    assert code == 0
    assert json.loads(out)["windows"] == 4
    assert "compared from step" in err
