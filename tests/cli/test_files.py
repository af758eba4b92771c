"""`isotherm inspect`, `plan` and `convert` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import isotherm as iso
from isotherm.cli.file_options import parse_layers
from isotherm.cli.main import main
from isotherm.topology import Topology
from isotherm.window import overall_imbalance

LAYERS = (1, 2, 4)
EXPERTS = 8


def make_heat(folder: Path, *, windows: int = 3) -> Path:
    """A heat file of a model of 6 layers, 3 of them MoE layers, on 4 ranks."""
    path, rng = folder / "some.heat", np.random.default_rng(0)
    header = iso.HeatHeader(LAYERS, EXPERTS, 2, topology=iso.Topology(4, 3), model_layers=6, model="a model")
    weights_LE = np.exp(rng.normal(0, 1, (3, EXPERTS)))
    with iso.HeatWriter(path, header) as writer:
        for number in range(windows):
            heat_KSLE = rng.poisson(100 * weights_LE, (2, 2, 3, EXPERTS))
            loads_LGS = rng.integers(0, 100, (3, 4, 3))
            steps = (8 * number, 8 * number + 4, 8 * number + 8)
            writer.append(iso.HeatWindow(heat_KSLE, loads_LGS, steps, [100, 50], LAYERS))
    return path


def statistics(folder: Path) -> Path:
    path = folder / "statistics.json"
    counts_LE = np.zeros((6, EXPERTS), int)
    counts_LE[list(LAYERS)] = np.random.default_rng(1).integers(1, 99, (3, EXPERTS))
    path.write_text(json.dumps({"logical_count": counts_LE.tolist()}))
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_inspect_shows_skew_drift_kinds_and_ranks(tmp_path: Path, capsys) -> None:
    code, out, err = run(capsys, "inspect", make_heat(tmp_path), "--top", 3)
    assert (code, err) == (0, "")
    assert "some.heat: isotherm, a model; 3 windows, steps 0 to 24; 3 layers of 8 experts" in out
    for title in ("Skew per layer", "hottest 3 of 8", "Drift", "prefill / decode", "imbalance of the ranks"):
        assert title in out


def test_inspect_prints_json_alone_and_notes_on_stderr(tmp_path: Path, capsys) -> None:
    code, out, err = run(capsys, "inspect", statistics(tmp_path), "--json")
    assert code == 0
    report = json.loads(out)
    assert [layer["layer"] for layer in report["heat"]["layers"]] == list(LAYERS)
    assert report["header"]["model_layers"] == 6
    assert err == "note: layers 0, 3, 5 have no heat and are left out: dense, or never used\n"
    assert report["notes"] == [err.removeprefix("note: ").strip()]
    assert report["heat"]["rank_imbalance"] is None


def test_inspect_says_when_heat_was_recorded(tmp_path: Path, capsys) -> None:
    path = make_heat(tmp_path)
    with iso.HeatWriter(path, iso.read_heat(path).header, append=True) as writer:
        for time in (0, 86_461):
            writer.append(iso.read_heat(path)[0], unix_seconds=time)
    code, out, _ = run(capsys, "inspect", path)
    assert code == 0
    assert "recorded 1970-01-01T00:00:00Z to 1970-01-02T00:01:01Z" in out
    report = json.loads(run(capsys, "inspect", path, "--json")[1])
    assert report["recorded"] == ["1970-01-01T00:00:00Z", "1970-01-02T00:01:01Z"]


def test_inspect_tells_of_a_file_that_was_cut(tmp_path: Path, capsys) -> None:
    path = make_heat(tmp_path)
    path.write_bytes(path.read_bytes()[:-10])
    code, out, err = run(capsys, "inspect", path)
    assert code == 0
    assert "2 windows" in out
    assert "incomplete window" in err


def test_plan_writes_what_the_engine_loads_and_prints_what_it_brings(tmp_path: Path, capsys) -> None:
    path, out = make_heat(tmp_path), tmp_path / "expert_map.json"
    common = ("plan", path, "--ranks", 4, "--nodes", 2, "--redundant", 4, "--policy", "deepseek")
    code, printed, err = run(capsys, *common, "--format", "vllm-ascend", "--out", out, "--json")
    assert (code, err) == (0, "")
    report = json.loads(printed)
    topology = iso.Topology.for_model(experts=EXPERTS, redundant=4, ranks=4, nodes=2)
    heat = iso.read_heat(path).merged()
    planned = iso.plan(heat, topology, engine="vllm-ascend", policy="deepseek")
    assert (report["ranks"], report["slots"]) == (4, 12)
    written = iso.read_placement(out, moe_layers=LAYERS)
    assert written.placement == planned.placement
    assert written.ranks == 4
    load_LG = np.zeros((3, 4))
    for layer, slot in np.ndindex(3, 12):
        expert = planned.placement.slot_to_expert[layer, slot]
        load_LG[layer, slot // 3] += heat.heat_LE[layer, expert] * planned.shares[layer, slot]
    assert report["imbalance"]["after"]["overall"] == pytest.approx(overall_imbalance(load_LG))
    assert report["imbalance"]["before"]["overall"] > report["imbalance"]["after"]["overall"]
    code, printed, _ = run(capsys, *common, "--slots", 4, "--out", tmp_path / "own.npz")
    assert code == 0
    assert "planned" in printed
    assert "3 layers of 12 slots on 4 ranks" in printed


def test_what_was_served_before_is_told_as_the_engine_serves_it(tmp_path: Path, capsys) -> None:
    """Expert 0 is on ranks 0 to 2: of four ranks of vLLM Ascend the last sends to the first again."""
    path, current = make_heat(tmp_path), tmp_path / "current.npz"
    row_P = np.array([0, 1, 2, 0, 3, 4, 0, 5, 6, 7, 1, 2])
    iso.write_placement(
        iso.Placement(np.tile(row_P, (3, 1)), EXPERTS), current, format="isotherm", layer_ids=LAYERS
    )
    parts_P = np.array([2 / 4, 1 / 2, 1 / 2, 1 / 4, 1, 1, 1 / 4, 1, 1, 1, 1 / 2, 1 / 2])
    load_LG = (iso.read_heat(path).heat_LE[:, row_P] * parts_P).reshape(3, 4, 3).sum(axis=2)
    code, printed, _ = run(
        capsys, "plan", path, "--current", current, "--policy", "static", "--format", "vllm-ascend",
        "--out", tmp_path / "map.json", "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(printed)
    assert report["imbalance"]["before"]["overall"] == pytest.approx(overall_imbalance(load_LG))
    assert report["imbalance"]["after"] == report["imbalance"]["before"]  # static: nothing moves


@pytest.mark.parametrize("format", ["sglang", "vllm-ascend", "tensorrt-llm", "deepseek", "isotherm"])
def test_plan_goes_on_from_a_file_of_any_engine(tmp_path: Path, capsys, format: str) -> None:
    path, current, out = make_heat(tmp_path), tmp_path / "current", tmp_path / "next"
    placement = iso.Placement.default(iso.MoEShape(3, EXPERTS, 2), iso.Topology(4, 3))
    iso.write_placement(placement, current, format=format, ranks=4, layer_ids=LAYERS, model_layers=6)
    code, printed, _ = run(
        capsys, "plan", path, "--ranks", 4, "--redundant", 4, "--current", current, "--policy", "deepseek",
        "--max-moves", 7, "--out", out, "--json",
    )  # fmt: skip
    assert code == 0
    report = json.loads(printed)
    changed = iso.read_placement(out).placement.slot_to_expert != placement.slot_to_expert
    assert changed.sum() == report["moves"] <= 7


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((), (4, 12, 1)),
        (("--redundant", 0), (4, 8, 1)),
        (("--nodes", 2), (4, 12, 2)),
        (("--ranks", 2), (2, 8, 1)),
        (("--ranks", 2, "--slots", 2, "--nodes", 2), (2, 10, 2)),
    ],
)
def test_a_cluster_that_is_not_given_is_the_one_of_the_file(tmp_path: Path, capsys, given, wanted) -> None:
    out, seen = tmp_path / "out.npz", []
    real = Topology.for_model

    def note(**values: int) -> Topology:
        seen.append(real(**values))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Topology, "for_model", note)
        code, _, err = run(capsys, "plan", make_heat(tmp_path), "--policy", "static", "--out", out, *given)
    assert (code, err) == (0, "")
    assert [(topology.ranks, topology.slots, topology.nodes) for topology in seen] == [wanted]
    assert iso.read_placement(out).placement.slots == wanted[1]


def test_a_file_that_knows_no_cluster_wants_ranks(tmp_path: Path, capsys) -> None:
    code, _, err = run(capsys, "plan", statistics(tmp_path), "--out", tmp_path / "out.npz")
    assert (code, "--ranks is missing, and the file does not say" in err) == (2, True)


def test_what_a_plan_may_cost_and_where_it_stops(tmp_path: Path, capsys) -> None:
    path, current = make_heat(tmp_path), tmp_path / "current.npz"
    placement = iso.Placement.default(iso.MoEShape(3, EXPERTS, 2), iso.Topology(4, 3))
    iso.write_placement(placement, current, format="isotherm", layer_ids=LAYERS)
    plan = ("plan", path, "--out", tmp_path / "out.npz", "--json")

    def moves(*more: object) -> int:
        code, printed, err = run(capsys, *plan, "--current", current, *more)
        assert (code, err) == (0, "")
        return json.loads(printed)["moves"]

    free = moves("--policy", "deepseek")
    few = moves("--policy", "deepseek", "--max-bytes", 300 * free - 1, "--expert-bytes", 300)
    assert few == moves("--policy", "deepseek", "--max-moves", free - 1) < free
    swift = ("--policy", "swift", "--max-imbalance")
    assert moves(*swift, 100) == 0 < moves(*swift, 1)
    code, _, err = run(capsys, *plan, "--max-imbalance", 1.1)
    assert (code, "give --current" in err) == (2, True)
    code, _, err = run(capsys, *plan, "--current", current, "--max-bytes", 5)
    assert (code, "--max-bytes and --expert-bytes go together" in err) == (2, True)
    code, _, err = run(capsys, *plan, "--current", current, "--max-imbalance", 0)
    assert (code, "max_imbalance=0.0 is below 1" in err) == (2, True)


def test_plan_for_one_kind_of_tokens(tmp_path: Path, capsys) -> None:
    path, out = make_heat(tmp_path), tmp_path / "out.npz"
    common = ("plan", path, "--ranks", 4, "--redundant", 4, "--policy", "deepseek", "--out", out)
    assert run(capsys, *common, "--kind", "decode")[0] == 0
    decode_LE = iso.read_heat(path).merged().heat_KSLE[1, 0]
    planned = iso.plan(decode_LE, iso.Topology(4, 3), policy="deepseek")
    assert iso.read_placement(out).placement == planned.placement
    code, _, err = run(capsys, *common, "--kind", "warm")
    assert (code, err) == (2, "isotherm: --kind warm: the file knows prefill, decode\n")


def test_convert_makes_heat_files_and_carries_placements_over(tmp_path: Path, capsys) -> None:
    source, heat = statistics(tmp_path), tmp_path / "some.heat"
    code, out, _ = run(capsys, "convert", source, heat, "--format", "heat", "--top-k", 2)
    assert (code, out) == (0, f"{heat}: 1 windows, 3 layers, 8 experts\n")
    assert (iso.read_heat(heat).heat_LE == iso.read_heat(source).heat_LE).all()
    assert iso.read_heat(heat).header == iso.read_heat(source, top_k=2).header
    first = tmp_path / "expert_map.json"
    placement = iso.Placement.default(iso.MoEShape(3, EXPERTS, 2), iso.Topology(4, 3))
    iso.write_placement(placement, first, format="vllm-ascend", ranks=4)
    before = first
    for format in ("sglang", "tensorrt-llm", "deepseek", "isotherm", "vllm-ascend"):
        after = tmp_path / f"of-{format}"
        told = ("--moe-layers", "1-2,4", "--model-layers", 6, "--ranks", 4)
        code, out, _ = run(capsys, "convert", before, after, "--format", format, *told, "--json")
        assert code == 0
        assert json.loads(out) == {"out": str(after), "format": format, "layers": 3, "slots": 12}
        assert iso.read_placement(after, moe_layers=LAYERS).placement == placement
        before = after
    assert before.read_bytes() == first.read_bytes()
    code, out, _ = run(capsys, "inspect", before, "--json")
    assert json.loads(out)["placement"]["ranks"] == 4


def test_convert_keeps_windows_and_the_placements_in_force(tmp_path: Path, capsys) -> None:
    source, out = make_heat(tmp_path), tmp_path / "again.heat"
    placement = iso.Placement.default(iso.MoEShape(3, EXPERTS, 2), iso.Topology(4, 3))
    with iso.HeatWriter(source, iso.read_heat(source).header, append=True) as writer:
        writer.set_placement(placement)
        writer.append(iso.read_heat(source)[0])
    assert run(capsys, "convert", source, out, "--format", "heat")[0] == 0
    before, after = iso.read_heat(source), iso.read_heat(out)
    assert after.placements == ((3, placement),)
    assert [window.slice_steps for window in before] == [window.slice_steps for window in after]
    assert (before.merged().slot_load_LGS == after.merged().slot_load_LGS).all()


def wrong_inputs(folder: Path) -> dict[str, Path]:
    files = {
        "missing": folder / "missing",
        "empty": folder / "empty",
        "noise": folder / "noise",
        "nan": folder / "nan.npy",
        "cut": folder / "cut.json",
        "folder": folder / "folder",
        "map": folder / "map.json",
    }
    files["empty"].write_bytes(b"")
    files["noise"].write_bytes(np.random.default_rng(0).bytes(5000))
    np.save(files["nan"], np.array([[1.0, np.nan]]))
    files["cut"].write_text('{"logical_count": [[1, 2')
    files["folder"].mkdir()
    files["map"].write_text('{"layer_list": [{"device_list": [{"device_expert": [0, "1"]}]}]}')
    return files


@pytest.mark.parametrize("name", ["missing", "empty", "noise", "nan", "cut", "folder", "map"])
def test_wrong_input_is_one_message_exit_2_and_nothing_written(tmp_path: Path, capsys, name: str) -> None:
    path, out = wrong_inputs(tmp_path)[name], tmp_path / "out"
    for arguments in (
        ("inspect", path),
        ("plan", path, "--ranks", 2, "--out", out),
        ("convert", path, out, "--format", "heat"),
        ("convert", path, out, "--format", "deepseek"),
    ):
        before = sorted(tmp_path.iterdir())
        code, printed, err = run(capsys, *arguments)
        assert (code, printed) == (2, ""), arguments
        assert err.startswith(f"isotherm: {path}"), err
        assert err.count("\n") == 1, err
        assert sorted(tmp_path.iterdir()) == before


def test_what_an_engine_wants_to_know_is_asked_for(tmp_path: Path, capsys) -> None:
    own, out = tmp_path / "own.npz", tmp_path / "out"
    placement = iso.Placement.default(iso.MoEShape(3, EXPERTS, 2), iso.Topology(4, 3))
    iso.write_placement(placement, own, format="isotherm", layer_ids=LAYERS)
    for format, wanted in (("vllm-ascend", "--ranks"), ("sglang", "--model-layers")):
        code, _, err = run(capsys, "convert", own, out, "--format", format)
        assert code == 2
        assert wanted in err
    other = tmp_path / "other.npz"
    iso.write_placement(placement, other, format="isotherm", layer_ids=(1, 2, 3))
    code, _, err = run(
        capsys, "plan", make_heat(tmp_path), "--ranks", 4, "--redundant", 4, "--current", other, "--out", out
    )
    assert code == 2
    assert "other.npz: numbers its layers itself, 1-3, and these are not the layers asked for, 1-2, 4" in err
    assert not out.exists()


def test_plan_replaces_neither_its_heat_nor_its_picture(tmp_path: Path, capsys) -> None:
    path = make_heat(tmp_path)
    before = path.read_bytes()
    (tmp_path / "link.heat").symlink_to(path)
    for arguments in ((path, "--out", tmp_path / "link.heat"), (path, "--out", path)):
        code, out, err = run(capsys, "plan", *arguments)
        assert (code, out) == (2, "")
        assert "would replace the heat that is read: give another name" in err
    picture = tmp_path / "out.png"
    code, _, err = run(capsys, "plan", path, "--out", picture, "--plot", picture)
    assert code == 2
    assert "would replace the picture" in err
    assert not picture.exists()
    assert path.read_bytes() == before


def test_a_budget_without_anything_to_count_from_is_refused_in_its_own_words(tmp_path: Path, capsys) -> None:
    code, _, err = run(
        capsys, "plan", make_heat(tmp_path), "--out", tmp_path / "out", "--max-bytes", 9, "--expert-bytes", 3
    )
    assert (code, "--max-bytes 9 counts from what is loaded: give --current" in err) == (2, True)


def test_what_is_taken_of_a_model_whose_layers_nobody_counted_is_told(tmp_path: Path, capsys) -> None:
    np.save(tmp_path / "some.npy", np.arange(1, 25).reshape(3, 8))
    out = tmp_path / "location.json"
    common = ("plan", tmp_path / "some.npy", "--ranks", 4, "--format", "sglang", "--out", out)
    code, _, err = run(capsys, *common)
    told = "note: the model is taken to have 3 layers, all of them MoE layers: where it has dense ones"
    assert (code, told in err) == (0, True)
    code, _, err = run(capsys, *common, "--moe-layers", "3-5", "--model-layers", 7)
    assert (code, err) == (0, "")
    assert len(json.loads(out.read_text())["physical_to_logical_map"]) == 7
    code, _, err = run(
        capsys, "plan", tmp_path / "some.npy", "--ranks", 4, "--format", "vllm-ascend", "--out", out
    )
    code, _, err = run(capsys, "convert", out, tmp_path / "next.json", "--format", "sglang")
    assert (code, told in err) == (0, True)


def test_draft_layers_are_for_tensorrt_llm_alone(tmp_path: Path, capsys) -> None:
    path, out = make_heat(tmp_path), tmp_path / "out.yaml"
    plan = (
        "plan",
        path,
        "--ranks",
        4,
        "--redundant",
        4,
        "--policy",
        "deepseek",
        "--mtp-layers",
        1,
        "--out",
        out,
    )
    assert run(capsys, *plan, "--format", "tensorrt-llm")[0] == 0
    assert iso.read_placement(out).layer_ids == (*LAYERS, 6)
    assert run(capsys, *plan, "--format", "sglang")[0] == 2
    code, _, err = run(capsys, "convert", path, tmp_path / "x", "--format", "heat", "--mtp-layers", 1)
    assert (code, "leave them out" in err) == (2, True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path, capsys) -> None:
    path, locked = make_heat(tmp_path), tmp_path / "locked"
    locked.mkdir(mode=0o500)
    code, _, err = run(capsys, "convert", path, locked / "out.heat", "--format", "heat")
    assert (code, "cannot be written" in err) == (2, True)


def test_an_output_that_cannot_be_written_leaves_nothing(tmp_path: Path, capsys) -> None:
    path = make_heat(tmp_path)
    for out in (tmp_path / "none" / "out", tmp_path):
        before = sorted(tmp_path.parent.iterdir()), sorted(tmp_path.iterdir())
        code, _, err = run(capsys, "convert", path, out, "--format", "heat")
        assert code == 2
        assert err.startswith(f"isotherm: {out}")
        assert (sorted(tmp_path.parent.iterdir()), sorted(tmp_path.iterdir())) == before


@pytest.mark.parametrize("command", ["inspect", "plan", "convert"])
def test_help_has_an_example(command: str, capsys) -> None:
    code, out, _ = run(capsys, command, "--help")
    assert code == 0
    assert f"isotherm {command} " in out


def test_layers_are_numbers_and_spans() -> None:
    assert parse_layers("3-5,7") == (3, 4, 5, 7)
    assert parse_layers(None) is None
    for text in ("", "3-", "a", "-1", "1..2"):
        with pytest.raises(ValueError, match="--moe-layers"):
            parse_layers(text)


def test_the_command_itself_ends_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "isotherm", "inspect", str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"isotherm: {tmp_path}: a folder with neither meta_info.json")
    assert "Traceback" not in done.stderr
