"""Files of other systems: read as their authors write them, and refused where they are anything else."""

from __future__ import annotations

import json
import pickle
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from isotherm.placement import EMPTY, Placement, Plan
from isotherm.traces.detection import detect_format
from isotherm.traces.files import read_heat, read_placement, write_placement
from isotherm.traces.pickles import read_torch_file

LAYERS = (3, 4, 6)
MODEL_LAYERS = 8
EXPERTS, SLOTS, RANKS = 6, 8, 4


def heat(rows: int = 5) -> np.ndarray:
    """int64 [rows, layers of the model, experts]: dense layers hold none."""
    heat_TLE = np.zeros((rows, MODEL_LAYERS, EXPERTS), np.int64)
    heat_TLE[:, LAYERS] = np.random.default_rng(0).integers(1, 1000, (rows, len(LAYERS), EXPERTS))
    return heat_TLE


def a_map(layers: int = len(LAYERS), seed: int = 0) -> np.ndarray:
    """int64 [layers, slots], no expert twice on a rank."""
    rng, rows = np.random.default_rng(seed), []
    while len(rows) < layers:
        row_GS = rng.permutation(np.arange(SLOTS) % EXPERTS).reshape(RANKS, -1)
        if (row_GS[:, 0] != row_GS[:, 1]).all():
            rows.append(row_GS.ravel())
    return np.array(rows)


def statistics_json(path: Path) -> Path:
    path = path / "statistics.json"
    path.write_text(json.dumps({"logical_count": heat(1)[0].astype(float).tolist()}))
    return path


def stat_dump(path: Path) -> Path:
    path = path / "expert_distribution_recorder_1.pt"
    counts = torch.zeros((9, MODEL_LAYERS, EXPERTS), dtype=torch.int32)
    counts[:5] = torch.from_numpy(heat())
    rates = torch.tensor([0.5], dtype=torch.bfloat16)
    torch.save({"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": rates}, path)
    return path


def test_statistics_keep_layer_numbers_and_say_what_is_left_out(tmp_path: Path) -> None:
    trace = read_heat(statistics_json(tmp_path))
    assert trace.layer_ids == LAYERS
    assert trace.header.model_layers == MODEL_LAYERS
    assert trace.notes == ("layers 0-2, 5, 7 have no heat and are left out: dense, or never used",)
    assert (trace.heat_LE == heat(1)[0, list(LAYERS)]).all()


def test_a_stat_dump_has_rows_in_windows_and_no_unfilled_rows(tmp_path: Path) -> None:
    trace = read_heat(stat_dump(tmp_path), rows_per_window=2, top_k=2)
    assert [window.slice_steps for window in trace] == [(0, 2), (2, 4), (4, 5)]
    expected_LE = heat()[2:4, list(LAYERS)].sum(axis=0)
    assert (trace[1].heat_LE == expected_LE).all()
    assert trace[1].tokens_K[0] == expected_LE.sum(axis=1).max() // 2
    assert trace.notes[0] == "4 of 9 rows hold no heat and are left out"


def test_a_per_pass_dump_is_folded_by_its_map(tmp_path: Path) -> None:
    path, rng = tmp_path / "dump.pt", np.random.default_rng(3)
    map_LP = a_map()
    counts = rng.integers(0, 9, (4, len(LAYERS), SLOTS))
    records = [
        {"forward_pass_id": 7 + number // 2, "rank": 0, "gatherer_key": key,
         "global_physical_count": torch.from_numpy(counts[number])}
        for number, key in enumerate(["child_a", "child_b"] * 2)
    ]  # fmt: skip
    torch.save({"records": records, "last_physical_to_logical_map": torch.from_numpy(map_LP)}, path)
    trace = read_heat(path, rows_per_window=1, moe_layers=LAYERS)
    expected = np.zeros((2, len(LAYERS), EXPERTS), int)
    for number, layer, slot in np.ndindex(counts.shape):
        expected[number // 2, layer, map_LP[layer, slot]] += counts[number, layer, slot]
    assert [window.heat_LE.tolist() for window in trace] == expected.tolist()
    assert (read_placement(path, moe_layers=LAYERS).placement.slot_to_expert == map_LP).all()


def records(counts_NLP: np.ndarray, rank: int, first: int = 7, **more) -> list[dict]:
    """A record for each pass of one rank, as the recorder makes them."""
    made = []
    for number, counts_LP in enumerate(counts_NLP):
        own = {name: values[number] for name, values in more.items()}
        counts = {"global_physical_count": torch.from_numpy(counts_LP)}
        made.append(
            {"forward_pass_id": first + number, "rank": rank, "gatherer_key": "primary", **own, **counts}
        )
    return made


def save_records(path: Path, made: list[dict], map_LP: np.ndarray) -> Path:
    torch.save({"records": made, "last_physical_to_logical_map": torch.from_numpy(map_LP)}, path)
    return path


def test_the_dumps_of_all_ranks_are_added_up_pass_by_pass(tmp_path: Path) -> None:
    map_LP, rng = a_map(), np.random.default_rng(3)
    counts = rng.integers(0, 9, (2, 4, len(LAYERS), SLOTS))
    for rank, counts_NLP in enumerate(counts):
        save_records(
            tmp_path / f"expert_distribution_recorder_1.5_{rank}.pt", records(counts_NLP, rank), map_LP
        )
    (tmp_path / "notes.txt").write_text("no dump")
    assert detect_format(tmp_path) == "sglang"
    trace = read_heat(tmp_path, rows_per_window=1, moe_layers=LAYERS)
    for window, counts_LP in zip(trace, counts.sum(axis=0), strict=True):
        expected_LE = np.zeros((len(LAYERS), EXPERTS), int)
        for layer, slot in np.ndindex(counts_LP.shape):
            expected_LE[layer, map_LP[layer, slot]] += counts_LP[layer, slot]
        assert (window.heat_LE == expected_LE).all()
    assert not trace.notes
    alone = read_heat(tmp_path / "expert_distribution_recorder_1.5_0.pt", moe_layers=LAYERS)
    assert "a folder of all is added up" in alone.notes[-1]
    twice = save_records(tmp_path / "expert_distribution_recorder_2_0.pt", records(counts[0], 0), map_LP)
    with pytest.raises(ValueError, match=rf"{twice.name}: records\[0\]: pass 7 of rank 0 is there twice"):
        read_heat(tmp_path)
    save_records(twice, records(counts[0], 2), a_map(seed=1))
    with pytest.raises(ValueError, match="last_physical_to_logical_map: is another than in the other files"):
        read_heat(tmp_path)


@pytest.mark.parametrize("mixed", [False, True])
def test_per_token_dumps_tell_prefill_from_decode_unless_passes_mix_them(tmp_path: Path, mixed: bool) -> None:
    """Ids of tokens, padded with -1, and what is counted of them, as the mode per_token writes both."""
    map_LP, rng = a_map(), np.random.default_rng(4)
    tokens, modes = (5, 2, 0, 6, 1, 3), [1, 2, 4, 1, 2, 3 if mixed else 2]
    ids = [rng.integers(-1, SLOTS, (len(LAYERS), count, 2)) for count in tokens]
    counts = np.array([[np.bincount(row[row >= 0], minlength=SLOTS) for row in ids_LTK] for ids_LTK in ids])
    made = records(
        counts, 0, forward_mode=modes, input_ids=[list(range(count)) for count in tokens],
        positions=[[1]] * 6, extend_seq_lens=[[5], None, None, [6], None, None],
        topk_ids_of_layer=[torch.from_numpy(each.astype(np.int32)) for each in ids],
        misc_objects=[[{"layer_id": 0, "num_tokens_per_rank": [3]}]] * 6,
    )  # fmt: skip
    path = save_records(tmp_path / "some.pt", made, map_LP)
    trace = read_heat(path, moe_layers=LAYERS, rows_per_window=4, top_k=2)
    expected_KLE = np.zeros((2, len(LAYERS), EXPERTS), int)
    for number, ids_LTK in enumerate(ids):
        for layer, token, pick in np.ndindex(ids_LTK.shape):
            slot, kind = ids_LTK[layer, token, pick], 1 - modes[number] % 2
            expected_KLE[kind, layer, map_LP[layer, slot]] += slot >= 0
    if mixed:
        assert trace.header.kinds == ("all",)
        assert sum(window.heat_LE.sum() for window in trace) == counts.sum()
    else:
        assert trace.header.kinds == ("prefill", "decode")
        assert (sum(window.heat_KSLE[:, 0] for window in trace) == expected_KLE).all()
        assert trace[0].tokens_K.tolist() == [
            heat_LE.sum(axis=1).max() // 2 for heat_LE in trace[0].heat_KSLE[:, 0]
        ]
    loaded = torch.load(path, weights_only=True, map_location="cpu")
    ours = read_torch_file(path)
    for own, theirs in zip(ours["records"], loaded["records"], strict=True):
        assert own.keys() == theirs.keys()
        for name, value in own.items():
            same = value == theirs[name].numpy() if isinstance(value, np.ndarray) else value == theirs[name]
            assert np.all(same), name


def test_a_full_buffer_is_told(tmp_path: Path) -> None:
    counts = torch.from_numpy(heat())
    torch.save(
        {"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None},
        tmp_path / "full.pt",
    )
    assert "buffer is full" in read_heat(tmp_path / "full.pt").notes[-1]
    assert all("buffer" not in note for note in read_heat(stat_dump(tmp_path)).notes)
    assert all("buffer" not in note for note in read_heat(statistics_json(tmp_path)).notes)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("torch") / "some.pt"
    dtypes = (
        torch.int32,
        torch.int64,
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bool,
        torch.bfloat16,
    )
    tensor = (torch.arange(60) * 3 % 17).reshape(3, 4, 5).to(data.draw(st.sampled_from(dtypes)))
    views = (
        lambda t: t,
        lambda t: t[1:, ::2],
        lambda t: t.permute(2, 0, 1),
        lambda t: t[0, 0, 1],
        lambda t: t[:0],
    )
    tensors = [data.draw(st.sampled_from(views))(tensor) for _ in range(2)]
    plain = data.draw(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text() | st.floats(allow_nan=False),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
            max_leaves=12,
        )
    )
    torch.save({"tensors": tensors, "plain": plain}, path)
    found = read_torch_file(path)
    loaded = torch.load(path, weights_only=True, map_location="cpu")
    assert found["plain"] == loaded["plain"] == plain
    for array, tensor in zip(found["tensors"], loaded["tensors"], strict=True):
        number = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert array.dtype == number.numpy().dtype
        assert np.array_equal(array, number.numpy())


class Attack:
    """Pickles as a call of ``what``."""

    def __init__(self, what, *arguments):
        self.what, self.arguments = what, arguments

    def __reduce__(self):
        return self.what, self.arguments


def pickled(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", bytes(8))
    return path


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("what", [Path.touch, eval, torch.load, np.array])
def test_a_pickle_that_calls_is_refused_and_does_nothing(tmp_path: Path, protocol: int, what) -> None:
    victim = tmp_path / "victim"
    arguments = (str(victim),) if what is not Path.touch else (victim,)
    program = pickle.dumps({"logical_count": Attack(what, *arguments)}, protocol)
    with pytest.raises(ValueError, match=r"some\.pt: archive/data\.pkl: .*not admitted"):
        read_heat(pickled(tmp_path / "some.pt", program))
    assert not victim.exists()


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("
STORAGE = b"(X\x07\0\0\0storagectorch\nLongStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x01tQ"


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (b"", "damaged"),
        (b"\x80\x02.", "damaged"),
        (b"\x80\x02}", "damaged"),
        (b"\x80\x02" + STORAGE.replace(b"K\x01", b"K\x02") + b".", "8 bytes, not 2"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02r\xff\xff\xff\x7f.", "damaged"),
        (b"\x80\x02)R.", "damaged"),
        (b"\x80\x02" + REBUILD + STORAGE + b"K\x00K\x02\x85K\x01\x85\x89NtR.", "beyond"),
        (
            b"\x80\x02" + REBUILD + STORAGE + b"K\x00\x8a\x05\0\0\0\0\x10\x85K\x00\x85\x89NtR.",
            "unpack to more",
        ),
        (b"\x80\x02" + REBUILD + STORAGE + b"K\x00K\x02\x85M\xff\xff\x85\x89NtR.", "beyond"),
        (b"\x80\x02" + b"(" * 10 + b"0.", "not admitted"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", r"'os\.system'"),
        (b"\x80\x02\x82\x01.", "not admitted"),
        (b"\x80\x02}}b.", "not admitted"),
        (b"cposix\nsystem\n(S'true'\ntR.", r"'posix\.system'"),
    ],
)  # fmt: skip
def test_a_damaged_or_cunning_pickle_is_one_error(tmp_path: Path, program: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=rf"some\.pt: archive/data\.pkl: .*{said}"):
        read_torch_file(pickled(tmp_path / "some.pt", program))


@settings(max_examples=400, deadline=None)
@example(program=b"i\\(X\x07\x00\x00\x00storagectorch\nLongStorage\n.")  # once a warning of the decoder's
@given(program=st.lists(st.sampled_from([op.code.encode("latin-1") for op in pickletools.opcodes])
                        | st.binary(max_size=6) | st.just(STORAGE), max_size=30).map(b"".join))  # fmt: skip
def test_no_program_gets_anywhere_but_to_data_or_one_error(tmp_path_factory, program: bytes) -> None:
    path = pickled(tmp_path_factory.mktemp("fuzz") / "some.pt", program)
    said = str(path)
    try:
        read_torch_file(path)
    except ValueError as error:
        said = str(error)
    assert said.startswith(str(path))


def ranks_folder(folder: Path, *, iterations: int = 3) -> tuple[Path, np.ndarray]:
    counts = np.random.default_rng(1).integers(1, 50, (2, iterations, len(LAYERS), EXPERTS))
    for rank in range(2):
        names = {
            f"{100 + i}_{layer}": counts[rank, i, position]
            for i in range(iterations)
            for position, layer in enumerate(LAYERS)
        }
        save_file(names, folder / f"rank{rank}.safetensors")
    (folder / "meta_info.json").write_text(json.dumps({"num_experts": EXPERTS, "num_experts_per_token": 2}))
    return folder, counts.sum(axis=0)


def test_tensorrt_llm_statistics_are_summed_over_ranks(tmp_path: Path) -> None:
    folder, counts_TLE = ranks_folder(tmp_path)
    (folder / "cooccurrence_rank0.safetensors").write_bytes(b"not ours")
    trace = read_heat(folder, rows_per_window=1)
    assert trace.layer_ids == LAYERS
    assert trace.header.top_k == 2
    assert [window.heat_LE.tolist() for window in trace] == counts_TLE.tolist()


def test_tensorrt_llm_statistics_that_miss_a_layer_are_refused(tmp_path: Path) -> None:
    folder, _ = ranks_folder(tmp_path)
    for rank in range(2):
        save_file({"100_3": np.ones(EXPERTS, int), "101_4": np.ones(EXPERTS, int)},
                  folder / f"rank{rank}.safetensors")  # fmt: skip
    with pytest.raises(ValueError, match="iteration 100, layer 4: is in no rank's file"):
        read_heat(folder)
    save_file({"total": np.ones(EXPERTS, int)}, folder / "rank1.safetensors")
    with pytest.raises(ValueError, match=r"rank1\.safetensors: 'total': must be named ITERATION_LAYER"):
        read_heat(folder)
    data = (folder / "rank0.safetensors").read_bytes()
    (folder / "rank0.safetensors").write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"rank0\.safetensors: is cut short"):
        read_heat(folder)


def save_array(path: Path, array: np.ndarray, name: str) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, **{name: array, "other": np.zeros(2)})
    return path


@pytest.mark.parametrize("name", ["some.npy", "some.npz"])
def test_arrays_of_one_matrix_or_of_many(tmp_path: Path, name: str) -> None:
    matrix = read_heat(save_array(tmp_path / name, np.asfortranarray(heat(1)[0]), "weight"))
    assert (matrix.heat_LE == heat(1)[0, list(LAYERS)]).all()
    many = read_heat(save_array(tmp_path / name, heat(), "weight"), rows_per_window=1)
    assert [window.heat_LE.tolist() for window in many] == heat()[:, list(LAYERS)].tolist()


def test_fractions_are_scaled_and_said(tmp_path: Path) -> None:
    shares_LE = np.random.default_rng(0).dirichlet(np.ones(EXPERTS), 3)
    trace = read_heat(save_array(tmp_path / "some.npy", shares_LE, ""))
    assert np.allclose(trace.heat_LE / trace.heat_LE.sum(axis=1, keepdims=True), shares_LE, rtol=1e-9)
    assert trace.notes == ("fractions: every count is multiplied by 10^12",)


def test_layers_are_named_by_the_user_where_the_file_does_not(tmp_path: Path) -> None:
    path = save_array(tmp_path / "some.npy", heat(1)[0, list(LAYERS)], "")
    assert read_heat(path).layer_ids == (0, 1, 2)
    assert read_heat(path, moe_layers=LAYERS).layer_ids == LAYERS
    whole = save_array(tmp_path / "whole.npy", heat(1)[0], "")
    named = read_heat(whole, moe_layers=(3, 4, 5, 6))
    assert named.layer_ids == (3, 4, 5, 6)
    assert named.notes == ("layers 5 have no heat",)
    assert named.heat_LE[2].sum() == 0
    with pytest.raises(ValueError, match="layer 6: has heat and is not in moe_layers=3-4"):
        read_heat(whole, moe_layers=(3, 4))
    with pytest.raises(ValueError, match="3 rows are neither"):
        read_heat(path, moe_layers=(3, 4))
    with pytest.raises(ValueError, match="3 rows are not model_layers=8"):
        read_heat(path, model_layers=8)


@pytest.mark.parametrize(
    ("value", "said"),
    [(np.nan, "nan"), (np.inf, "inf"), (-1.0, "-1.0"), (1e300, "1e\\+300")],
)
def test_numbers_that_are_no_counts_are_told_with_layer_and_expert(
    tmp_path: Path, value: float, said: str
) -> None:
    counts_LE = heat(1)[0].astype(float)
    counts_LE[4, 2] = value
    with pytest.raises(ValueError, match=rf"some\.npy: array, layer 4, expert 2: {said} must be"):
        read_heat(save_array(tmp_path / "some.npy", counts_LE, ""))


def npy(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def test_arrays_that_promise_what_is_not_there_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.npy"
    for header in (
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (1000000, 1000000), }\n",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1, 1), }\n",
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (-1, -8), }\n",
        b"{'descr': '<i8', 'fortran_order': False, 'shape': (1, 2), }\n",
        b"{'descr': '|V0', 'fortran_order': False, 'shape': (1, 2), }\n",
        b"__import__('os').system('true')\n",
        b"(" * 5000,
    ):
        path.write_bytes(npy(header, bytes(8)))
        with pytest.raises(ValueError, match=r"^\S*some\.npy: "):
            read_heat(path)
    path.write_bytes(npy(b"{'descr': '<U2', 'fortran_order': False, 'shape': (1, 1), }\n", bytes(8)))
    with pytest.raises(ValueError, match="must hold numbers"):
        read_heat(path)


def test_a_zip_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch) -> None:
    path = save_array(tmp_path / "some.npz", np.zeros((100, 1000)), "weight")
    monkeypatch.setattr("isotherm.traces.npy.LARGEST_BYTES", 100_000)
    with pytest.raises(ValueError, match="unpacks to 8"):
        read_heat(path)


@pytest.mark.parametrize("make", [statistics_json, stat_dump])
def test_a_file_cut_anywhere_is_one_error(tmp_path: Path, make) -> None:
    path = make(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"^{path}: "):
            read_heat(path)


def test_a_zip_cut_short_and_a_bare_pickle_are_called_so(tmp_path: Path) -> None:
    path = stat_dump(tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="cut short: a zip file"):
        read_heat(path)
    path.write_bytes(pickle.dumps({"logical_count": [[1]]}))
    with pytest.raises(ValueError, match="a bare pickle, which is not read"):
        read_heat(path)


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "{", "{}", '{"logical_count": 3}', '{"logical_count": [[1, 2], [3]]}', "null",
     '{"logical_count": [["a"]]}', '{"logical_count": [[]]}', '{"logical_count": [[0, 0]]}', "[" * 100_000,
     '{"logical_count": ' + "[" * 100_000, '{"logical_count": [[1e999]]}',
     '{"logical_count": [[' + "9" * 5000 + "]]}", '{"logical_count": [[99999999999999999999]]}',
     '{"layer_list": []}', "\u00e9", "initial_global_assignments: 3"],
)  # fmt: skip
def test_text_of_any_kind_is_one_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(text)
    for read in (read_heat, read_placement):
        with pytest.raises(ValueError, match=rf"^{path}: "):
            read(path)


FORMATS = ("isotherm", "sglang", "vllm-ascend", "tensorrt-llm", "deepseek")


@pytest.mark.parametrize("format", FORMATS)
def test_a_plan_comes_back_from_every_format(tmp_path: Path, format: str) -> None:
    placement, ones_L = Placement(a_map(), EXPERTS), np.ones(len(LAYERS))
    planned = Plan(placement, placement.even_shares(), (), ones_L, ones_L, "made up", LAYERS)
    path = tmp_path / "placement"
    write_placement(planned, path, format=format, ranks=RANKS, model_layers=MODEL_LAYERS)
    assert detect_format(path) == format
    found = read_placement(path, moe_layers=LAYERS)
    assert found.placement == planned.placement
    assert found.layer_ids == LAYERS
    assert found.ranks == (RANKS if format in ("isotherm", "vllm-ascend") else None)
    assert found.model_layers == (MODEL_LAYERS if format in ("isotherm", "sglang") else None)


def test_sglang_gets_a_row_for_every_layer_and_asks_how_many(tmp_path: Path) -> None:
    path, placement = tmp_path / "some.json", Placement(a_map(), EXPERTS)
    with pytest.raises(ValueError, match=r"row for every layer.*--model-layers"):
        write_placement(placement, path, format="sglang", layer_ids=LAYERS)
    assert list(tmp_path.iterdir()) == []
    write_placement(placement, path, format="sglang", layer_ids=LAYERS, model_layers=MODEL_LAYERS)
    values = json.loads(path.read_text())
    assert list(values) == ["physical_to_logical_map"]  # the engine takes names as arguments
    rows = values["physical_to_logical_map"]
    assert len(rows) == MODEL_LAYERS
    assert [rows[layer] for layer in LAYERS] == a_map().tolist()
    assert rows[0] == [0, 1, 2, 3, 4, 5, 0, 1]
    whole = read_placement(path)
    assert (whole.layer_ids, whole.model_layers) == (tuple(range(MODEL_LAYERS)), MODEL_LAYERS)
    assert "dense ones too" in whole.notes[0]
    write_placement(placement, path, format="sglang")
    assert json.loads(path.read_text())["physical_to_logical_map"] == a_map().tolist()


def test_vllm_ascend_gets_slots_by_device(tmp_path: Path) -> None:
    path, placement = tmp_path / "expert_map.json", Placement(a_map(), EXPERTS)
    with pytest.raises(ValueError, match="--ranks"):
        write_placement(placement, path, format="vllm-ascend")
    with pytest.raises(ValueError, match="8 slots do not divide over ranks=3"):
        write_placement(placement, path, format="vllm-ascend", ranks=3)
    write_placement(placement, path, format="vllm-ascend", ranks=RANKS, layer_ids=LAYERS)
    values = json.loads(path.read_text())
    assert values["moe_layer_count"] == 3
    for number, layer in enumerate(values["layer_list"]):
        assert (layer["layer_id"], layer["device_count"]) == (number, RANKS)
        for rank, device in enumerate(layer["device_list"]):
            assert device == {
                "device_id": rank,
                "device_expert": a_map()[number, 2 * rank : 2 * rank + 2].tolist(),
            }


def test_vllm_ascend_gets_no_expert_twice_on_a_rank(tmp_path: Path) -> None:
    path, map_LP = tmp_path / "expert_map.json", a_map()
    map_LP[1] = [0, 1, 2, 3, 4, 5, 0, 0]
    with pytest.raises(ValueError, match=r"layer 4: rank 3 holds expert 0 twice, .*--format vllm-ascend"):
        write_placement(Placement(map_LP, EXPERTS), path, format="vllm-ascend", ranks=RANKS, layer_ids=LAYERS)
    assert not path.exists()
    map_LP[1] = [0, 1, 2, 3, 4, 0, 5, 0]
    write_placement(Placement(map_LP, EXPERTS), path, format="vllm-ascend", ranks=RANKS, layer_ids=LAYERS)


def test_tensorrt_llm_gets_the_models_layer_numbers_and_json_is_read_too(tmp_path: Path) -> None:
    path, placement = tmp_path / "some.yaml", Placement(a_map(), EXPERTS)
    write_placement(placement, path, format="tensorrt-llm", layer_ids=LAYERS)
    values = yaml.safe_load(path.read_text())
    assert values == {
        "num_slots": SLOTS, "layer_updates_per_iter": 0,
        "initial_global_assignments": dict(zip(LAYERS, a_map().tolist())),
    }  # fmt: skip
    path.write_text(json.dumps(values))
    assert read_placement(path).layer_ids == LAYERS
    assert read_placement(path).placement == placement


@pytest.mark.parametrize(
    "text",
    ["{}", "a: &a [1, *a]", "num_slots: 2\ninitial_global_assignments: &a {3: *a}",
     "num_slots: 2\ninitial_global_assignments: {3: [0, 1, 2]}",
     "num_slots: 2\ninitial_global_assignments: {x: [0, 1]}",
     "num_slots: 2\ninitial_global_assignments: {3: [0, 2]}", "initial_global_assignments: " + "[" * 5000,
     "num_slots: 2\ninitial_global_assignments: !!python/object/apply:os.system ['true']",
     "num_slots: 2\ninitial_global_assignments: {? [1] : 2}",
     "num_slots: 1\ninitial_global_assignments: {3: [.nan]}"],
)  # fmt: skip
def test_configurations_that_are_none_are_one_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^{path}: "):
        read_placement(path, format="tensorrt-llm")


def test_deepseek_gets_what_its_own_planner_returns(tmp_path: Path) -> None:
    path, placement = tmp_path / "some.npz", Placement(a_map(), EXPERTS)
    write_placement(placement, path, format="deepseek", layer_ids=LAYERS)
    with np.load(path) as arrays:
        assert (arrays["phy2log"] == a_map()).all()
        assert (arrays["logcnt"] == placement.replicas_LE).all()
        for layer, expert in np.ndindex(len(LAYERS), EXPERTS):
            slots = np.flatnonzero(a_map()[layer] == expert).tolist()
            padded = slots + [-1] * (arrays["log2phy"].shape[2] - len(slots))
            assert arrays["log2phy"][layer, expert].tolist() == padded
    np.save(path.with_suffix(".npy"), a_map())
    assert read_placement(path.with_suffix(".npy")).placement == placement


def test_empty_slots_are_for_our_own_files_alone(tmp_path: Path) -> None:
    map_LP = a_map()
    layer, slot = 1, int(np.flatnonzero(map_LP[1] == 0)[0])
    map_LP[layer, slot] = EMPTY
    placement = Placement(map_LP, EXPERTS)
    for format in FORMATS[1:]:
        with pytest.raises(ValueError, match=rf"layer 4, slot {slot} is empty"):
            write_placement(
                placement, tmp_path / "some", format=format, layer_ids=LAYERS, ranks=4, model_layers=8
            )
    write_placement(placement, tmp_path / "some", format="isotherm", layer_ids=LAYERS)
    assert read_placement(tmp_path / "some").placement == placement


def test_outputs_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    path, placement = tmp_path / "some.npz", Placement(a_map(), EXPERTS)
    path.write_bytes(b"before")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ValueError, match=r"some\.npz: cannot be written: No space"):
        write_placement(placement, path, format="deepseek")
    assert [each.name for each in tmp_path.iterdir()] == ["some.npz"]
    assert path.read_bytes() == b"before"
    monkeypatch.undo()
    with pytest.raises(ValueError, match="cannot be written: No such file"):
        write_placement(placement, tmp_path / "none" / "some.npz", format="deepseek")


def test_forced_formats_and_unknown_ones(tmp_path: Path) -> None:
    path = statistics_json(tmp_path)
    assert read_heat(path, format="sglang").layer_ids == LAYERS
    with pytest.raises(ValueError, match="format='vllm' is unknown: choose one of isotherm, sglang"):
        read_heat(path, format="vllm")
    with pytest.raises(ValueError, match="holds a placement and no heat"):
        read_heat(path, format="vllm-ascend")
    with pytest.raises(ValueError, match="damaged zip"):
        read_heat(path, format="deepseek")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=r"a folder with neither meta_info\.json"):
        read_heat(tmp_path / "folder")


def test_tensorrt_llm_gets_a_row_for_each_draft_layer(tmp_path: Path) -> None:
    path, placement = tmp_path / "some.yaml", Placement(a_map(), EXPERTS)
    told = {"layer_ids": LAYERS, "mtp_layers": 2}
    with pytest.raises(ValueError, match="--model-layers"):
        write_placement(placement, path, format="tensorrt-llm", **told)
    with pytest.raises(ValueError, match="format='tensorrt-llm' alone"):
        write_placement(placement, path, format="sglang", model_layers=MODEL_LAYERS, **told)
    assert not path.exists()
    write_placement(placement, path, format="tensorrt-llm", model_layers=MODEL_LAYERS, **told)
    rows = yaml.safe_load(path.read_text())["initial_global_assignments"]
    assert list(rows) == [*LAYERS, 8, 9]
    assert [rows[layer] for layer in LAYERS] == a_map().tolist()
    assert rows[8] == rows[9] == [0, 1, 2, 3, 4, 5, 0, 1]
