"""Files that strangers come with, and what they say about them."""

from __future__ import annotations

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made import HEADER, a_placement, a_window
from safetensors.numpy import save_file

from isotherm.traces.chunks import pack_chunk
from isotherm.traces.detection import holds_placement_alone
from isotherm.traces.files import read_heat, read_placement, write_heat, write_placement
from isotherm.traces.planes import deflate_counts
from isotherm.traces.recorder import HeatWriter
from isotherm.traces.stored import ROLE
from isotherm.window import HeatWindow

COUNTS_LE = np.arange(1, 13).reshape(3, 4)


def saved(folder: Path, array: np.ndarray) -> Path:
    np.save(folder / "some.npy", array)
    return folder / "some.npy"


def heat_file(folder: Path) -> Path:
    with HeatWriter(folder / "some.heat", HEADER) as writer:
        writer.append(a_window())
    return folder / "some.heat"


@pytest.mark.parametrize(
    ("counts_LE", "rule"),
    [
        (np.full((2, 4), 1e-310), "layer 0: its fractions are too small beside the largest"),
        (np.array([[1e-20, 0.0], [0.5, 0.25]]), "layer 0: its fractions are too small"),
        (np.array([[np.inf, 1]], np.float16), "layer 0, expert 0: inf must be a number"),
    ],
)
def test_fractions_that_no_count_can_hold_are_refused(tmp_path: Path, counts_LE, rule: str) -> None:
    with pytest.raises(ValueError, match=f"some.npy: array, {rule}"):
        read_heat(saved(tmp_path, counts_LE))


def test_fractions_in_16_bits_are_read(tmp_path: Path) -> None:
    trace = read_heat(saved(tmp_path, np.array([[0.5, 0.25, 3]], np.float16)))
    assert (trace.heat_LE * 4 == [[2 * 10**11, 10**11, 12 * 10**11]]).all()


def test_fractions_keep_as_many_digits_as_their_sum_allows(tmp_path: Path, monkeypatch) -> None:
    """Ten million of them add up to more than an integer holds: the bound is lowered in their place."""
    path = saved(tmp_path, np.full((3, 4), 0.7))
    assert read_heat(path).notes == ("fractions: every count is multiplied by 10^12",)
    monkeypatch.setattr("isotherm.traces.matrices.LARGEST_SUM", 1e12)
    trace = read_heat(path)
    assert trace.notes == ("fractions: every count is multiplied by 10^11",)
    assert (trace.heat_LE == 7 * 10**10).all()


def test_counts_whose_sums_no_integer_holds_are_refused(tmp_path: Path) -> None:
    shape_KSLE = (2, 1, 3, 8)
    largest = HeatWindow(np.full(shape_KSLE, 2**56), None, (0, 1), [1, 1], HEADER.layer_ids)
    with HeatWriter(tmp_path / "some.heat", HEADER) as writer:
        with pytest.raises(ValueError, match="heat_KSLE: the counts add up to more than 2"):
            writer.append(replace(largest, heat_KSLE=np.full(shape_KSLE, 2**60)))
        for _ in range(3):
            writer.append(largest)
    trace = read_heat(tmp_path / "some.heat")
    assert trace[2].heat_LE.sum() == 48 * 2**56
    with pytest.raises(ValueError, match="the counts of the first 2 windows add up to more than"):
        trace.merged()
    counts = deflate_counts(np.full(shape_KSLE, 2**60))
    arrays = {"slice_steps": np.array([0, 1]), "tokens_K": np.array([1, 1]), "heat_KSLE": counts}
    with (tmp_path / "some.heat").open("ab") as file:
        file.write(pack_chunk(arrays, {ROLE: "window"}))
    with pytest.raises(ValueError, match=r"some\.heat: chunk at byte .*heat_KSLE: the counts add up to more"):
        read_heat(tmp_path / "some.heat")[3]


@pytest.mark.parametrize("name", ["model", "engine", "kinds"])
def test_names_that_a_terminal_would_obey_are_refused(tmp_path: Path, name: str) -> None:
    text = "\x1b]0;title\x07"
    with pytest.raises(ValueError, match="holds signs that cannot be shown"):
        replace(HEADER, **{name: (text,) if name == "kinds" else text})
    values = HEADER.as_dict() | {name: [text] if name == "kinds" else text}
    (tmp_path / "some.heat").write_bytes(pack_chunk({}, {ROLE: "header", "header": json.dumps(values)}))
    with pytest.raises(ValueError, match=r"some\.heat: header: .*title.* cannot be shown"):
        read_heat(tmp_path / "some.heat")


def test_an_array_of_arrays_is_refused_by_its_name(tmp_path: Path) -> None:
    header = b"{'descr': ('<i4', (3,)), 'fortran_order': False, 'shape': (2, 2), }".ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\1\0\0\0" * 12
    (tmp_path / "some.npy").write_bytes(data)
    with pytest.raises(ValueError, match=r"some\.npy: dtype .* is not admitted"):
        read_heat(tmp_path / "some.npy")


def test_negative_counts_are_refused_where_a_sum_would_hide_them(tmp_path: Path) -> None:
    folder = tmp_path / "statistics"
    folder.mkdir()
    (folder / "meta_info.json").write_text('{"num_experts": 2, "num_experts_per_token": 1}')
    for rank, counts in enumerate(([5, 5], [-1, 5])):
        save_file({"7_3": np.array(counts)}, folder / f"rank{rank}.safetensors")
    with pytest.raises(ValueError, match=r"rank1\.safetensors: 7_3: counts must be from 0"):
        read_heat(folder)
    record = {"forward_pass_id": 0, "rank": 0, "global_physical_count": torch.tensor([[-1, 5, 5]])}
    last = torch.tensor([[0, 0, 1]])
    torch.save({"records": [record], "last_physical_to_logical_map": last}, tmp_path / "some.pt")
    with pytest.raises(ValueError, match=r"records\[0\]: global_physical_count must be from 0"):
        read_heat(tmp_path / "some.pt")


def test_a_folder_of_one_dump_that_counts_all_ranks_is_read(tmp_path: Path) -> None:
    """SGLang's own mode, stat, leaves it in the folder that the engine is told to write to."""
    counts = torch.from_numpy(COUNTS_LE)[None].repeat(2, 1, 1)
    torch.save({"rank": 0, "logical_count": counts}, tmp_path / "expert_distribution_recorder_1.pt")
    assert (read_heat(tmp_path).heat_LE == 2 * COUNTS_LE).all()
    torch.save({"rank": 0, "logical_count": counts}, tmp_path / "expert_distribution_recorder_2.pt")
    with pytest.raises(ValueError, match=r"_1\.pt: holds the counts of all ranks: give this file alone"):
        read_heat(tmp_path)


@pytest.mark.parametrize("text", ["5", "null", "[1, 2]", '"x"'])
def test_json_that_is_no_object_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "some.json"
    path.write_text(text)
    assert not holds_placement_alone(path, "sglang")
    with pytest.raises(ValueError, match=r"some\.json: must hold names and values"):
        read_heat(path, format="sglang")


def test_arrays_that_are_heat_and_placement_are_heat(tmp_path: Path) -> None:
    np.savez(tmp_path / "some.npz", weight=COUNTS_LE, phy2log=np.zeros((3, 4), int))
    assert not holds_placement_alone(tmp_path / "some.npz", "deepseek")
    np.savez(tmp_path / "some.npz", phy2log=np.zeros((3, 4), int))
    assert holds_placement_alone(tmp_path / "some.npz", "deepseek")


def test_a_header_that_promises_too_much_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    values = replace(HEADER, experts=2**30, topology=None).as_dict()
    chunk = pack_chunk({}, {ROLE: "header", "header": json.dumps(values)})
    path = heat_file(tmp_path)
    path.write_bytes(chunk + path.read_bytes())
    with pytest.raises(ValueError, match=r"some\.heat: header: heat of .* takes more than"):
        read_heat(path)


def test_a_pipe_and_a_name_that_cannot_be_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (read_heat, read_placement):
        with pytest.raises(
            ValueError, match="pipe: is a pipe or a device, and files are read more than once"
        ):
            read(tmp_path / "pipe")
        with pytest.raises(ValueError, match="cannot be read: File name too long"):
            read(tmp_path / ("n" * 5000))
        with pytest.raises(ValueError, match="cannot be read: No such file"):
            read(tmp_path / "missing")


def test_a_folder_that_may_not_be_looked_into_is_told(tmp_path: Path, monkeypatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ValueError, match="cannot be read: Permission denied"):
        read_heat(tmp_path)


def test_what_is_of_the_other_kind_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="of isotherm holds heat and no placement: `isotherm plan` makes"):
        read_placement("sample")
    write_placement(a_placement(), tmp_path / "own.npz", format="isotherm")
    with pytest.raises(ValueError, match=r"own\.npz: a file of isotherm holds a placement and no heat"):
        read_heat(tmp_path / "own.npz")


@pytest.mark.parametrize("format", ["isotherm", "tensorrt-llm", "deepseek"])
def test_layers_that_a_file_numbers_itself_are_not_numbered_otherwise(tmp_path: Path, format: str) -> None:
    path = tmp_path / "some"
    write_placement(a_placement(), path, format=format, layer_ids=(3, 4, 6), model_layers=8)
    assert read_placement(path, moe_layers=(3, 4, 6)).layer_ids == (3, 4, 6)
    with pytest.raises(
        ValueError, match="some: numbers its layers itself, 3-4, 6, and these are not the layers asked for"
    ):
        read_placement(path, moe_layers=(0, 1, 2))
    if format == "isotherm":
        with pytest.raises(ValueError, match="has 8 layers in all, not model_layers=9"):
            read_placement(path, model_layers=9)


def test_a_heat_file_is_not_numbered_otherwise_and_takes_what_it_does_not_say(tmp_path: Path) -> None:
    path = heat_file(tmp_path)
    with pytest.raises(ValueError, match="numbers its layers itself, 1-2, 5, and these are not"):
        read_heat(path, moe_layers=(3, 4, 5))
    with pytest.raises(ValueError, match="says top_k=2, not 4"):
        read_heat(path, top_k=4)
    with pytest.raises(ValueError, match=r"some\.heat: .*do not hold layer 5"):
        read_heat(path, model_layers=4)
    trace = read_heat(path, moe_layers=(1, 2, 5), model_layers=7, top_k=2)
    assert trace.header.model_layers == 7
    write_heat(trace, tmp_path / "other.heat")
    with pytest.raises(ValueError, match="has 7 layers in all, not model_layers=8"):
        read_heat(tmp_path / "other.heat", model_layers=8)


@pytest.mark.parametrize("format", ["vllm-ascend", "sglang"])
def test_rows_that_are_not_all_layers_need_their_numbers(tmp_path: Path, format: str) -> None:
    """Rows of three MoE layers of eight, taken as the first three, are silently wrong for the engine."""
    write_placement(a_placement(), tmp_path / "some", format=format, ranks=4)
    with pytest.raises(ValueError, match="3 rows are not model_layers=8: give moe_layers too"):
        read_placement(tmp_path / "some", model_layers=8)
    file = read_placement(tmp_path / "some", model_layers=8, moe_layers=(3, 4, 6))
    assert (file.layer_ids, file.model_layers) == ((3, 4, 6), 8)


def test_no_model_has_so_many_layers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model_layers=100000000 is above 16384"):
        write_placement(a_placement(), tmp_path / "some", format="sglang", model_layers=10**8)
    np.savez(tmp_path / "some.npz", phy2log=a_placement().slot_to_expert, layer_ids=[-1, 0, 1])
    with pytest.raises(ValueError, match="3 ascending layer numbers from 0"):
        read_placement(tmp_path / "some.npz")


def outputs(folder: Path, name: str) -> list:
    """Ways to write a file of that name."""
    trace = read_heat("sample")
    return [
        lambda: write_placement(a_placement(), folder / name, format="isotherm"),
        lambda: write_heat(trace, folder / name),
    ]


def test_a_device_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    """As root, a file would take the place of /dev/null for every process of the machine."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", ".", ".."):
        for write in outputs(tmp_path, name):
            with pytest.raises(ValueError, match="cannot be written: it is there, and is no file"):
                write()
    assert (tmp_path / "pipe").is_fifo()


def test_what_a_link_leads_to_is_replaced_and_keeps_its_mode(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    for write in outputs(tmp_path, "link"):
        write()
        target.chmod(0o600)
        before = target.read_bytes()
        target.write_bytes(b"old")
        write()
        assert link.is_symlink()
        assert target.read_bytes() == before
        assert target.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "target"]


def test_a_name_as_long_as_names_may_be_is_written_and_a_longer_one_told(tmp_path: Path) -> None:
    for write in outputs(tmp_path, "n" * 255):
        write()
    for write in outputs(tmp_path, "n" * 256):
        with pytest.raises(ValueError, match="nnn: cannot be written: File name too long"):
            write()
    for write in outputs(tmp_path, "missing/some"):
        with pytest.raises(ValueError, match="missing/some: cannot be written: No such file"):
            write()
    assert len(list(tmp_path.iterdir())) == 1
