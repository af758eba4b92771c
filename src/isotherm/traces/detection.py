"""Whose file it is, found by what it holds."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from isotherm.traces.formats.deepseek import MAP, WEIGHTS
from isotherm.traces.formats.own import SLOTS
from isotherm.traces.formats.sglang import is_folder_of_dumps
from isotherm.traces.formats.tensorrt_llm import ASSIGNMENTS, META
from isotherm.traces.formats.token_ids import IDS
from isotherm.traces.npy import NPY_BEGINS, ZIP_BEGINS, zip_names
from isotherm.traces.problems import parse_json, problem, read_whole
from isotherm.traces.stored import is_heat_file

FileFormat: TypeAlias = Literal["isotherm", "sglang", "vllm-ascend", "tensorrt-llm", "deepseek", "token-ids"]
"""Whose file it is. isotherm: heat files and our own placements. token-ids: experts that tokens picked."""

SAMPLE = "sample"
"""The name of the heat file that ships, where no file here has it."""

PICKLE_BEGINS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

_JSON_KEYS: dict[str, FileFormat] = {
    "logical_count": "sglang",
    "physical_to_logical_map": "sglang",
    "layer_list": "vllm-ascend",
    ASSIGNMENTS: "tensorrt-llm",
}


def located(path: str | os.PathLike[str]) -> Path:
    """The file or folder that is meant: the sample that ships by its name, unless a file here has it too.

    Raises:
        ValueError: nothing is there, it cannot be read, or it cannot be read twice, as readers do.
    """
    path = Path(path)
    try:
        if str(path) == SAMPLE and not path.exists():
            return Path(__file__).with_name("sample.heat")
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            next(path.iterdir(), None)
    except OSError as error:
        raise problem(path, "", f"cannot be read: {error.strerror or error}") from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise problem(path, "", "is a pipe or a device, and files are read more than once: save it to a file")
    return path


def detect_format(path: Path) -> FileFormat:
    """Whose file it is, by what it holds.

    Raises:
        ValueError: it cannot be read, or is of none that we know.
    """
    path = located(path)
    if path.is_dir():
        if (path / META).is_file():
            return "tensorrt-llm"
        if is_folder_of_dumps(path):
            return "sglang"
        raise problem(path, "", f"a folder with neither {META}, as TensorRT-LLM's, nor dumps of SGLang")
    if is_heat_file(path):
        return "isotherm"
    if names := zip_names(path):
        if any(name.endswith("/data.pkl") for name in names):
            return "sglang"
        if f"{SLOTS}.npy" in names:
            return "isotherm"
        return "token-ids" if f"{IDS}.npy" in names else "deepseek"
    return _detect_text(path)


def _detect_text(path: Path) -> FileFormat:
    data = read_whole(path)
    if not data:
        raise problem(path, "", "is empty")
    if data.startswith(NPY_BEGINS):
        return "deepseek"
    if data.startswith(ZIP_BEGINS):
        raise problem(path, "", "cut short: a zip file (.pt, .npz) without the directory at its end")
    if data.startswith(PICKLE_BEGINS):
        raise problem(
            path, "", "is a bare pickle, which is not read: save with torch.save of torch 1.6 or newer"
        )
    if data.lstrip()[:1] == b"{":
        values = parse_json(data, path, "")
        for key, found in _JSON_KEYS.items():
            if key in values:
                return found
    elif ASSIGNMENTS.encode() in data:
        return "tensorrt-llm"
    raise problem(
        path,
        "",
        "is of no system that is known here: give format= (inspect --format, else --input-format), "
        f"one of {', '.join(get_args(FileFormat))}",
    )


def holds_placement_alone(path: Path, format: FileFormat) -> bool:
    """Whether a file of this format is a placement without any heat."""
    path = located(path)
    if format == "isotherm":
        return not is_heat_file(path)
    if format == "deepseek":
        names = zip_names(path)
        return f"{MAP}.npy" in names and not any(f"{weights}.npy" in names for weights in WEIGHTS)
    if format == "token-ids":
        return False
    if format == "sglang":
        if path.is_dir() or zip_names(path):
            return False
        values = parse_json(read_whole(path), path, "")
        return isinstance(values, dict) and "logical_count" not in values
    return format == "vllm-ascend" or not path.is_dir()
