"""`isotherm synth`, and options from a file, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import isotherm as iso
from isotherm.cli.main import COMMANDS, main

SMALL = ("--layers", 3, "--experts", 32, "--top-k", 2, "--windows", 4, "--window-steps", 8)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_synth_writes_a_heat_file_and_says_what_it_is_like(tmp_path: Path, capsys) -> None:
    out = tmp_path / "some.heat"
    command = ("synth", out, *SMALL, "--moe-layers", "1-2,5", "--model-layers", 6)
    code, printed, err = run(capsys, *command, "--json")
    assert (code, err) == (0, "")
    report = json.loads(printed)
    assert (report["windows"], report["layers"], report["experts"]) == (4, 3, 32)
    asked = {each["name"]: each["asked"] for each in report["statistics"]}
    assert (asked["cosine of domains"], asked["sigma of log heat"]) == (0.85, 0.6)
    trace = iso.read_heat(out)
    assert (trace.layer_ids, trace.header.model_layers, len(trace)) == ((1, 2, 5), 6, 4)
    code, printed, _ = run(capsys, *command)
    assert "asked for" in printed
    assert "abrupt, 4 windows, 3 layers of 32 experts" in printed


def test_synth_like_a_file_takes_its_shape(tmp_path: Path, capsys) -> None:
    like = tmp_path / "heat.npy"
    np.save(like, np.random.default_rng(0).integers(1, 999, (2, 24)))
    command = ("synth", tmp_path / "some.heat", "--like", like, "--windows", 2, "--top-k", 3)
    code, _, err = run(capsys, *command, "--moe-layers", "4,5")
    assert code == 0, err
    assert iso.read_heat(tmp_path / "some.heat").heat_LE.shape == (2, 24)
    code, _, err = run(capsys, *command, "--experts", 32)
    assert (code, err) == (2, f"isotherm: --experts 32: --like {like} says 24; leave one of them out\n")


def test_a_config_stands_between_the_command_line_and_the_defaults(tmp_path: Path, capsys) -> None:
    config, out = tmp_path / "some.yaml", tmp_path / "some.heat"
    values = ("layers: 2", "experts: 16", "top_k: 2", "windows: 7", "window-steps: 4", "decode-share: 0.5")
    config.write_text("\n".join((*values, "json: true", "like: null")))
    for given in (("--config", config), (f"--config={config}",)):
        code, printed, err = run(capsys, "synth", out, "--windows", 3, *given)
        assert (code, err) == (0, "")
        report = json.loads(printed)
        assert (report["windows"], report["layers"], report["experts"]) == (3, 2, 16)
        window = iso.read_heat(out)[0]
        assert window.tokens_K.tolist() == [4 * 4096, 4 * 4096]
        assert len(window.slice_steps) == 3  # the default


def test_an_alias_on_the_command_line_goes_before_the_file(tmp_path: Path, capsys) -> None:
    heat, config = tmp_path / "heat.npy", tmp_path / "some.yaml"
    np.save(heat, np.random.default_rng(0).integers(1, 999, (2, 8)))
    config.write_text("redundant: 8\nranks: 4\npolicy: deepseek\n")
    out = tmp_path / "out.npz"
    assert run(capsys, "plan", heat, "--out", out, "--config", config)[0] == 0
    assert iso.read_placement(out).placement.slots == 16
    assert run(capsys, "plan", heat, "--out", out, "--slots", 4, "--config", config)[0] == 0
    assert iso.read_placement(out).placement.slots == 12
    config.write_text("slots: 4\nranks: 4\npolicy: deepseek\n")
    assert run(capsys, "plan", heat, "--out", out, "--redundant", 8, "--config", config)[0] == 0
    assert iso.read_placement(out).placement.slots == 16


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("windwos: 3", "'windwos': is no option of this command: do you mean windows?"),
        ("xyzzy: 3", "'xyzzy': is no option of this command\n"),
        ("out: some.heat", "'out': is no option of this command"),
        ("config: other.yaml", "'config': is no option of this command"),
        ("top-k: 2\ntop_k: 4", "'top_k': is top-k by another name: give one of them"),
        ("- windows", "must hold names of options and their values"),
        ("windows: [", "not YAML"),
        ("windows: {a: 1}", "windows: {'a': 1} is no value of an option"),
        ("windows: [true]", "is no value of an option"),
        ("a: !!python/object/apply:os.system [true]", "not YAML"),
    ],
)
def test_a_config_that_is_wrong_is_one_message(tmp_path: Path, capsys, text: str, said: str) -> None:
    config, out = tmp_path / "some.yaml", tmp_path / "some.heat"
    config.write_text(text)
    code, printed, err = run(capsys, "synth", out, "--config", config)
    assert (code, printed) == (2, "")
    assert err.startswith(f"isotherm: {config}: ")
    assert said in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_a_value_of_another_type_in_a_config_is_told_by_its_flag(tmp_path: Path, capsys) -> None:
    config = tmp_path / "some.yaml"
    config.write_text("windows: many")
    code, _, err = run(capsys, "synth", tmp_path / "some.heat", "--config", config)
    assert (code, "--windows" in err) == (2, True)
    for given in (("--config",), ("--config", config, "--config", config)):
        code, _, err = run(capsys, "synth", tmp_path / "some.heat", *given)
        assert (code, err) == (2, "isotherm: --config wants one file, once\n")
    code, _, err = run(capsys, "doctor", "--config", tmp_path / "none.yaml")
    assert (code, "cannot be read" in err) == (2, True)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_help_of_each_command_has_an_example_and_tells_of_the_config(command, capsys) -> None:
    code, out, _ = run(capsys, command.name, "--help")
    assert code == 0
    examples = out.partition("Examples:")[2]
    assert f"isotherm {command.name}" in examples
    assert "--config FILE" in examples


def test_the_help_of_all_is_a_paragraph_each(capsys) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(command.name in out for command in COMMANDS)
    assert "Examples" not in out
