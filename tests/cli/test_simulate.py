"""`isotherm simulate` as a user runs it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

import isotherm as iso
from isotherm.cli.config_file import flag_aliases
from isotherm.cli.simulate import SimulateOptions
from isotherm.config import Config
from isotherm.planner.outlook.price import StepTime
from isotherm.replay import Cluster, replay_trace
from replay.made import CLUSTER, LAYER_IDS, STEP, drifting_windows, run, save

TOPOLOGY = iso.Topology.for_model(experts=8, redundant=4, ranks=4, nodes=2)


def test_totals_windows_and_score(tmp_path: Path, capsys) -> None:
    path = save(tmp_path, 20, steps=100)
    code, out, err = run(capsys, "simulate", path, *CLUSTER, *STEP)
    assert (code, err) == (0, "")
    assert "20 windows, 2,000 steps, policy incremental" in out
    for shown in (
        "imbalance without balancing",
        "weights moved",
        "time of steps saved",
        "DeepSeek's balancer: 100",
    ):
        assert shown in out
    assert "Imbalance of 16 of 20 windows" in out


def test_it_is_the_replay_of_the_library(tmp_path: Path, capsys) -> None:
    path, current = save(tmp_path), tmp_path / "current.npz"
    placement = iso.Placement(np.tile(np.arange(12)[::-1] % 8, (3, 1)), 8)
    iso.write_placement(placement, current, format="isotherm", ranks=4, layer_ids=LAYER_IDS)
    code, out, err = run(
        capsys, "simulate", path, *CLUSTER, *STEP, "--window", 16, "--policy", "swift", "--budget", 0.5,
        "--max-moves", 9, "--delay-steps", 2, "--current", current, "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    windows = list(iso.replay.windows.rewindowed(drifting_windows(8), 16))
    cluster = Cluster(TOPOLOGY, expert_bytes=1000, step=StepTime(50, 0.5))
    config = Config(mode="full", policy="swift", max_moves=9, move_bytes_per_step=2**19)
    expected = replay_trace(windows, cluster, config, placement=placement, delay_steps=2)
    assert json.loads(out) == json.loads(json.dumps(expected.as_dict()))
    assert expected.moves > 0


def test_every_setting_of_the_balancer_is_an_option_unless_another_says_it_or_a_replay_has_none() -> None:
    flags = set(flag_aliases(SimulateOptions))
    said_by = {
        "--window-steps": "--window", "--slices": "--window", "--move-bytes-per-step": "--budget",
        "--link-bytes-per-second": "--link-gb-per-second",
    }  # fmt: skip
    no_use = {"--heartbeat-seconds", "--split", "--locality-slack", "--check-moves"}
    own = {f"--{setting.name.replace('_', '-')}" for setting in fields(Config)}
    assert set(said_by) <= own - flags <= no_use | set(said_by)
    assert set(said_by.values()) <= flags


def test_settings_of_the_balancer_reach_it_from_flags_and_from_a_file(tmp_path: Path, capsys) -> None:
    path, settings = save(tmp_path), tmp_path / "settings.yaml"
    settings.write_text("min-gain: 0.5\nforecast: last\nmax-moves: 3\nrobust: true\n")
    told = ("simulate", path, *CLUSTER, "--json", "--config", settings)
    assert json.loads(run(capsys, *told)[1])["decisions"]["moves"] == 0
    code, out, _ = run(capsys, *told, "--min-gain", 0)
    config = Config(mode="full", min_gain=0.0, forecast="last", max_moves=3, robust=True)
    expected = replay_trace(drifting_windows(8), Cluster(TOPOLOGY), config, delay_steps=4)
    assert json.loads(out)["windows"] == json.loads(json.dumps(expected.as_dict()))["windows"]
    assert (code, expected.moves > 0) == (0, True)
    code, _, err = run(capsys, *told, "--forecast", "nonsense")
    assert code == 2
    assert "forecast='nonsense' is unknown" in err
    settings.write_text("heartbeat-seconds: 1\n")
    assert run(capsys, *told)[0] == 2


def test_one_matrix_has_nothing_to_replay(tmp_path: Path, capsys) -> None:
    path = tmp_path / "heat.npy"
    np.save(path, drifting_windows(1)[0].heat_LE)
    code, out, err = run(capsys, "simulate", path, *CLUSTER)
    assert (code, out) == (2, "")
    assert "one matrix and no axis of time" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", 0), "--budget 0.0 must be a number above 0"),
        (("--budget", "inf"), "--budget inf must be a number above 0"),
        (("--window", 1000), "holds 64 steps, fewer than a window of 1000"),
        (("--delay-steps", -1), "--delay-steps -1 is negative"),
        (("--policy", "best"), "policy='best' is unknown"),
        (("--plot", "out.doc"), "--plot out.doc"),
    ],
)
def test_what_is_wrong_is_one_message(tmp_path: Path, capsys, arguments, message) -> None:
    code, out, err = run(capsys, "simulate", save(tmp_path), *CLUSTER, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_placement_of_other_layers_is_refused(tmp_path: Path, capsys) -> None:
    current = tmp_path / "current.yaml"
    placement = iso.Placement.default(iso.MoEShape(3, 8, 2), TOPOLOGY)
    iso.write_placement(placement, current, format="tensorrt-llm", layer_ids=(0, 1, 2))
    code, out, err = run(capsys, "simulate", save(tmp_path), *CLUSTER, "--current", current)
    assert (code, out) == (2, "")
    assert "current.yaml: numbers its layers itself, 0-2, and these are not the layers asked for" in err


def test_a_picture_is_drawn(tmp_path: Path, capsys) -> None:
    path = tmp_path / "run.png"
    assert run(capsys, "simulate", save(tmp_path), *CLUSTER, "--plot", path)[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")
