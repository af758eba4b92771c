"""Files of every format, damaged at random: read, or refused by one error that names them."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import HEADER, a_placement, a_window
from safetensors.numpy import save_file

from isotherm.traces.files import read_heat, read_placement, write_placement
from isotherm.traces.recorder import HeatWriter

COUNTS_LE = np.arange(12).reshape(3, 4)


def heat_file(path: Path) -> None:
    with HeatWriter(path, HEADER, placement=a_placement()) as writer:
        writer.append(a_window(0))
        writer.append(a_window(1))


def torch_file(path: Path) -> None:
    torch.save({"rank": 0, "logical_count": torch.from_numpy(COUNTS_LE)[None]}, path)


def per_pass_file(path: Path) -> None:
    record = {"forward_pass_id": 3, "rank": 0, "global_physical_count": torch.from_numpy(COUNTS_LE)}
    last = torch.tensor([[0, 1, 2, 0]] * 3)
    torch.save(
        {"records": [record, {**record, "forward_pass_id": 4}], "last_physical_to_logical_map": last}, path
    )


def json_file(path: Path) -> None:
    path.write_text(json.dumps({"logical_count": COUNTS_LE.tolist()}))


def npy_file(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, COUNTS_LE)


def npz_file(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, weight=COUNTS_LE, other=COUNTS_LE)


def ids_file(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, experts=COUNTS_LE.reshape(2, 3, 2) % 5, offsets=np.arange(3))


def statistics_folder(path: Path) -> None:
    path.mkdir()
    save_file({"7_3": np.arange(4), "7_4": np.arange(4)}, path / "rank0.safetensors")
    (path / "meta_info.json").write_text('{"num_experts": 4, "num_experts_per_token": 2}')


def folder_of_dumps(path: Path) -> None:
    path.mkdir()
    per_pass_file(path / "expert_distribution_recorder_1.5_0.pt")


def placement_file(format: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_placement(a_placement(), path, format=format, ranks=4, model_layers=3)

    return write


MAKERS = {
    **{maker.__name__: maker for maker in (
        heat_file, torch_file, per_pass_file, json_file, npy_file, npz_file, ids_file, statistics_folder,
        folder_of_dumps)},
    **{format: placement_file(format)
       for format in ("isotherm", "sglang", "vllm-ascend", "tensorrt-llm", "deepseek")},
}  # fmt: skip


def mutate(data: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    """Each change at a place, counted round the file: bytes put over it, put in, or cut out from there."""
    for place, how, new in changes:
        at = place % (len(data) + 1)
        skipped = {"over": len(new), "in": 0, "out": len(new) + 1}[how]
        data = data[:at] + (b"" if how == "out" else new) + data[at + skipped :]
    return data


PIECES = [
    b"\0" * 8,
    b"\xff" * 8,
    b"-1",
    b"NaN",
    b"1e999",
    b"null",
    b"[[",
    b"]",
    b"{}",
    b'"',
    b"9" * 30,
    b"&a",
    b"*a",
]
"""What often breaks a reader, put in the middle of its file."""
NEW = st.binary(min_size=1, max_size=4) | st.sampled_from(PIECES)
CHANGES = st.lists(
    st.tuples(st.integers(0, 2**16), st.sampled_from(["over", "in", "out"]), NEW), min_size=1, max_size=4
)


@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=80, deadline=None)
@given(changes=CHANGES)
def test_damage_is_read_or_refused_by_name(tmp_path_factory, name: str, changes) -> None:
    path = tmp_path_factory.mktemp("damaged") / "some"
    MAKERS[name](path)
    target = next(each for each in path.iterdir() if each.suffix != ".json") if path.is_dir() else path
    target.write_bytes(mutate(target.read_bytes(), changes))
    for read in (read_heat, read_placement):
        said = str(path)
        with warnings.catch_warnings():
            # numpy and zipfile talk about odd headers and names before they give up.
            warnings.simplefilter("ignore", UserWarning)
            try:
                found = read(path)
                if read is read_heat:
                    assert all(window.heat_KSLE.min() >= 0 for window in found)
            except ValueError as error:
                said = str(error)
        assert said.startswith(str(path)), said
    shutil.rmtree(path.parent)


def changed_header(path: Path, change: Callable[[dict], None]) -> None:
    """The first window of a heat file, its header changed and its length right again."""
    data = path.read_bytes()
    first = 8 + int.from_bytes(data[:8], "little")
    length = int.from_bytes(data[first : first + 8], "little")
    header = json.loads(data[first + 8 : first + 8 + length])
    change(header)
    text = json.dumps(header).encode()
    rest = data[first + 8 + length :]
    path.write_bytes(data[:first] + len(text).to_bytes(8, "little") + text + rest)


@pytest.mark.parametrize("dtype", [[], {}, None, 1, "", "I65"])
def test_a_dtype_that_is_none_is_refused(tmp_path: Path, dtype) -> None:
    """Found by fuzz_readers.py: a list for a dtype ended in a TypeError."""
    path = tmp_path / "some"
    with HeatWriter(path, HEADER) as writer:
        writer.append(a_window(0))
    changed_header(path, lambda header: header["heat_KSLE"].update(dtype=dtype))
    with pytest.raises(ValueError, match=r"some: byte \d+, array 'heat_KSLE': dtype .* is none of"):
        read_heat(path)


@pytest.mark.parametrize("experts", [0, -1, 2**21, 2**60])
def test_a_number_of_experts_that_no_model_has_is_refused(tmp_path: Path, experts: int) -> None:
    """Found by fuzz_readers.py: 2^60 experts asked for exbibytes."""
    path = tmp_path / "some"
    write_placement(a_placement(), path, format="isotherm", ranks=4)
    with np.load(path) as arrays:
        changed = {**arrays, "experts": np.array(experts)}
    with path.open("wb") as file:
        np.savez(file, **changed)
    with pytest.raises(
        ValueError, match=rf"some: slot_to_expert_LP: {experts} experts; there must be from 1"
    ):
        read_placement(path)
