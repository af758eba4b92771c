"""Files of any system, read by what they hold; placements, written whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args
from uuid import uuid4

from isotherm.placement import Placement, Plan
from isotherm.traces.detection import FileFormat, detect_format, located
from isotherm.traces.formats.deepseek import pack_deepseek, read_deepseek_heat, read_deepseek_placement
from isotherm.traces.formats.own import pack_own, read_own_placement
from isotherm.traces.formats.sglang import (
    pack_sglang,
    read_sglang_heat,
    read_sglang_placement,
)
from isotherm.traces.formats.tensorrt_llm import (
    pack_tensorrt_llm,
    read_tensorrt_llm_heat,
    read_tensorrt_llm_placement,
    with_draft_layers,
)
from isotherm.traces.formats.token_ids import read_token_ids
from isotherm.traces.formats.vllm_ascend import pack_vllm_ascend, read_vllm_ascend_placement
from isotherm.traces.problems import problem
from isotherm.traces.recorder import HeatWriter
from isotherm.traces.sources import ROWS_PER_WINDOW, PlacementFile, Source
from isotherm.traces.stored import is_heat_file, read_heat_file
from isotherm.traces.trace import HeatTrace, Track

PlacementFormat: TypeAlias = Literal["isotherm", "sglang", "vllm-ascend", "tensorrt-llm", "deepseek"]
"""For whom a placement can be written."""

_HEAT_READERS: dict[str, Callable[[Source], HeatTrace]] = {
    "isotherm": lambda source: read_heat_file(source.path),
    "sglang": read_sglang_heat,
    "tensorrt-llm": read_tensorrt_llm_heat,
    "deepseek": read_deepseek_heat,
    "token-ids": read_token_ids,
}
_PLACEMENT_READERS: dict[str, Callable[[Source], PlacementFile]] = {
    "isotherm": read_own_placement,
    "sglang": read_sglang_placement,
    "vllm-ascend": read_vllm_ascend_placement,
    "tensorrt-llm": read_tensorrt_llm_placement,
    "deepseek": read_deepseek_placement,
}
_PACKERS: dict[str, Callable[[PlacementFile], bytes]] = {
    "isotherm": pack_own,
    "sglang": pack_sglang,
    "vllm-ascend": pack_vllm_ascend,
    "tensorrt-llm": pack_tensorrt_llm,
    "deepseek": pack_deepseek,
}


def read_heat(
    path: str | os.PathLike[str],
    *,
    format: FileFormat | None = None,
    moe_layers: Sequence[int] | None = None,
    model_layers: int | None = None,
    top_k: int | None = None,
    rows_per_window: int = ROWS_PER_WINDOW,
) -> HeatTrace:
    """The heat in a file, whoever wrote it.

    Heat files are lazy; of others, with one row per forward pass, ``rows_per_window`` rows make a window.
    Layers that hold no heat are left out, with the numbers of the others kept; ``notes`` of the trace says
    which.

    Args:
        path: a heat file; a dump (``.pt``), a folder of the dumps of all ranks, or statistics (JSON) of
            SGLang; a folder of statistics of TensorRT-LLM; an array of numpy, [layers, experts] or [rows,
            layers, experts]; ids of experts per token, [tokens, layers, picks], in an ``.npz`` under the name
            ``experts``; or ``"sample"``, the heat that ships: that of the demo's model.
        format: whose file it is; None: found by what it holds.
        moe_layers: the model's numbers of the layers, where the file does not say.
        model_layers: all layers of the model, dense ones too, where the file does not say.
        top_k: experts that a token picks, where the file does not say.

    Raises:
        ValueError: the file is not what it should be; the message names file, place and rule.
    """
    source = Source(located(path), _as_layers(moe_layers), model_layers, top_k, rows_per_window)
    found = detect_format(source.path) if format is None else _known(format)
    if found not in _HEAT_READERS or (
        found == "isotherm" and format is None and not is_heat_file(source.path)
    ):
        raise problem(source.path, "", f"a file of {found} holds a placement and no heat")
    trace = _HEAT_READERS[found](source)
    header = trace.header
    source.check_said(header.layer_ids, header.model_layers)
    if source.top_k is not None and header.top_k != source.top_k:
        raise problem(source.path, "", f"says top_k={header.top_k}, not {source.top_k}: leave it out")
    if header.model_layers == source.model_layers or source.model_layers is None:
        return trace
    try:
        return replace(trace, header=replace(header, model_layers=source.model_layers))
    except ValueError as error:
        raise problem(source.path, "", str(error)) from error


def read_placement(
    path: str | os.PathLike[str],
    *,
    format: FileFormat | None = None,
    moe_layers: Sequence[int] | None = None,
    model_layers: int | None = None,
) -> PlacementFile:
    """The placement in a file, whoever wrote it. Arguments and errors are those of `read_heat`.

    Files of vLLM Ascend and DeepSeek-style arrays do not name their layers; without ``moe_layers`` they are
    numbered from 0. One of SGLang has rows for dense layers too, which ``moe_layers`` leaves out.
    """
    source = Source(located(path), _as_layers(moe_layers), model_layers)
    found = detect_format(source.path) if format is None else _known(format)
    if found not in _PLACEMENT_READERS or (found == "isotherm" and is_heat_file(source.path)):
        rule = f"a file of {found} holds heat and no placement: `isotherm plan` makes one"
        raise problem(source.path, "", rule)
    file = _PLACEMENT_READERS[found](source)
    source.check_said(file.layer_ids, file.model_layers)
    return file


def write_placement(
    what: Plan | Placement | PlacementFile,
    path: str | os.PathLike[str],
    *,
    format: PlacementFormat,
    ranks: int | None = None,
    layer_ids: Sequence[int] | None = None,
    model_layers: int | None = None,
    mtp_layers: int = 0,
) -> None:
    """Writes a placement for an engine. The file appears whole, or stays as it was.

    Args:
        what: a plan knows its layers; those of a bare placement are numbered from 0.
        format: vllm-ascend: ``expert_map.json``. sglang: JSON for ``--init-expert-location``. tensorrt-llm:
            a load balancer configuration in YAML. deepseek: ``.npz``. isotherm: ``.npz``.
        ranks: over how many ranks the slots lie; vLLM Ascend wants to know.
        layer_ids: the model's numbers of the layers, where ``what`` does not say.
        model_layers: all layers of the model, dense ones too; SGLang wants to know.
        mtp_layers: layers for multi-token prediction behind those, of which TensorRT-LLM wants a row each.

    Raises:
        ValueError: something that the format wants is not known, or the file cannot be written.
    """
    if format not in _PACKERS:
        raise ValueError(f"format={format!r} is unknown: choose one of {', '.join(_PACKERS)}")
    file = _as_file(what, _as_layers(layer_ids))
    file = replace(
        file,
        ranks=file.ranks if ranks is None else ranks,
        model_layers=file.model_layers if model_layers is None else model_layers,
    )
    if mtp_layers < 0 or (mtp_layers and format != "tensorrt-llm"):
        raise ValueError(
            f"mtp_layers={mtp_layers} must not be negative, and are for format='tensorrt-llm' alone"
        )
    if mtp_layers:
        file = with_draft_layers(file, mtp_layers)
    write_whole(Path(path), _PACKERS[format](file))


def write_heat(
    trace: HeatTrace,
    path: str | os.PathLike[str],
    *,
    track: Track = iter,
) -> None:
    """Writes a trace as a heat file, which appears whole, or stays as it was.

    ``track`` is given the windows and gives them back one after another, showing how far it came.

    Raises:
        ValueError: a window cannot be read, or the file cannot be written.
    """
    path = Path(path)
    real = _replaced(path)
    temporary = _beside(real)
    try:
        with HeatWriter(temporary, trace.header) as writer:
            starts = dict(trace.placements)
            for index, window in enumerate(track(trace)):
                if index in starts:
                    writer.set_placement(starts[index])
                writer.append(window, unix_seconds=trace.times[index] if trace.times else None)
        _take_place(temporary, real)
    except OSError as error:
        raise problem(path, "", f"cannot be written: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(str(error).replace(str(temporary), str(path))) from error
    finally:
        _remove(temporary)


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that appears whole, or stays as it was.

    Raises:
        ValueError: it cannot be written.
    """
    real = _replaced(path)
    temporary = _beside(real)
    try:
        with temporary.open("xb") as file:
            file.write(data)
        _take_place(temporary, real)
    except OSError as error:
        raise problem(path, "", f"cannot be written: {error.strerror or error}") from error
    finally:
        _remove(temporary)


def _replaced(path: Path) -> Path:
    """The file that writing to ``path`` replaces: what a link leads to.

    Raises:
        ValueError: a folder, or a pipe or a device: what takes its place would be a file, for everybody.
    """
    try:
        real = Path(os.path.realpath(path))
        mode = real.stat().st_mode
    except FileNotFoundError:
        return real
    except OSError as error:
        raise problem(path, "", f"cannot be written: {error.strerror or error}") from error
    if not stat.S_ISREG(mode):
        raise problem(path, "", "cannot be written: it is there, and is no file; give the name of a file")
    return real


def _beside(path: Path) -> Path:
    """A name for a file in the making, in the same folder, so that it can take the place of ``path``."""
    return path.with_name(f".isotherm-{uuid4().hex}")


def _take_place(temporary: Path, path: Path) -> None:
    """Whoever may read the file that was there may read the new one."""
    with suppress(FileNotFoundError):
        temporary.chmod(stat.S_IMODE(path.stat().st_mode))
    temporary.replace(path)


def _remove(temporary: Path) -> None:
    # Where it could not be made, it cannot be removed either, and why has been said.
    with suppress(OSError):
        temporary.unlink()


def _known(format: FileFormat) -> FileFormat:
    if format not in get_args(FileFormat):
        raise ValueError(f"format={format!r} is unknown: choose one of {', '.join(get_args(FileFormat))}")
    return format


def _as_layers(layers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if layers is None else tuple(int(layer) for layer in layers)


def _as_file(what: Plan | Placement | PlacementFile, layer_ids: tuple[int, ...] | None) -> PlacementFile:
    if isinstance(what, PlacementFile):
        return what if layer_ids is None else replace(what, layer_ids=layer_ids)
    if isinstance(what, Plan):
        return PlacementFile(what.placement, what.layer_ids if layer_ids is None else layer_ids)
    return PlacementFile(what, tuple(range(what.layers)) if layer_ids is None else layer_ids)
