"""SGLang: dumps of its expert distribution recorder, published statistics, and initial expert locations."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from isotherm.traces.formats.rows import filled_rows, placement_of
from isotherm.traces.formats.sglang_records import LAST_MAP, RECORDS, trace_of_records
from isotherm.traces.matrices import trace_of
from isotherm.traces.npy import zip_names
from isotherm.traces.pickles import read_torch_file
from isotherm.traces.problems import parse_json, problem, read_whole
from isotherm.traces.sources import PlacementFile, Source
from isotherm.traces.trace import HeatTrace

_COUNTS = "logical_count"
_MAP = "physical_to_logical_map"
_DUMP = re.compile(r"expert_distribution_recorder_.*\.pt")


def read_sglang_heat(source: Source) -> HeatTrace:
    """Counts of a dump (``.pt``, of any mode), of a folder of dumps of all ranks, or of statistics (JSON).

    A dump of the modes ``stat`` and ``stat_approx`` has a row per forward pass, and rows without heat where
    its buffer was not full. The others have records with counts of slots.
    """
    if source.path.is_dir():
        return _trace_of_folder({path: _load(path) for path in _dumps(source.path)}, source)
    values = _load(source.path)
    if _COUNTS in values:
        return _trace_of_buffer(values[_COUNTS], source)
    if RECORDS in values:
        return trace_of_records({source.path: values}, source)
    raise problem(source.path, "", f"has neither {_COUNTS} nor {RECORDS}")


def _trace_of_folder(dumps: dict[Path, dict[str, Any]], source: Source) -> HeatTrace:
    """Dumps of all ranks, or one that holds the counts of all of them already."""
    whole = [path for path, values in dumps.items() if _COUNTS in values]
    if whole and len(dumps) == 1:
        return _trace_of_buffer(dumps[whole[0]][_COUNTS], source)
    if whole:
        raise problem(whole[0], "", "holds the counts of all ranks: give this file alone, not its folder")
    return trace_of_records(dumps, source)


def is_folder_of_dumps(path: Path) -> bool:
    """Whether the folder holds dumps of the recorder."""
    return path.is_dir() and any(_DUMP.fullmatch(each.name) for each in path.iterdir())


def _dumps(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if _DUMP.fullmatch(path.name))
    if not found:
        raise problem(folder, "", "holds no expert_distribution_recorder_*.pt")
    return found


def _trace_of_buffer(counts: Any, source: Source) -> HeatTrace:
    """A full buffer begins at its oldest row only by chance: it is written round."""
    trace = trace_of(counts, source, engine="SGLang", place=_COUNTS)
    rows = len(counts) if np.ndim(counts) == 3 else 1
    if rows < 2 or trace[-1].end_step < rows:
        return trace
    full = "the recorder's buffer is full: rows may begin in the middle, and older ones be lost"
    return HeatTrace(trace.header, trace.windows, (*trace.notes, full))


def read_sglang_placement(source: Source) -> PlacementFile:
    """The map of an initial expert location, or the one that a dump ends with: a row for every layer of the
    model, of which ``moe_layers`` leaves the dense ones out."""
    values = _load(source.path)
    for name in (_MAP, LAST_MAP):
        if name in values:
            return _whole_model(placement_of(values[name], source, name), source)
    raise problem(source.path, "", f"has neither {_MAP} nor {LAST_MAP}")


def _whole_model(file: PlacementFile, source: Source) -> PlacementFile:
    if source.moe_layers is not None:
        return file
    note = "there is a row for every layer, dense ones too: --moe-layers leaves those out"
    return replace(file, model_layers=len(file.layer_ids), notes=(note,))


def pack_sglang(file: PlacementFile) -> bytes:
    """JSON for ``--init-expert-location``: a row for every layer of the model. Rows of dense layers, which
    SGLang reads past, hold expert ``p % experts`` in slot ``p``.

    Raises:
        ValueError: it is not known how many layers the model has, or a slot is empty.
    """
    model_layers = file.model_layers
    if model_layers is None and file.layer_ids == tuple(range(len(file.layer_ids))):
        model_layers = len(file.layer_ids)
    if model_layers is None:
        raise ValueError(
            f"SGLang wants a row for every layer, dense ones too, and of this model only the MoE layers "
            f"{file.layer_ids[0]} to {file.layer_ids[-1]} are known: give model_layers= (--model-layers)"
        )
    dense = [slot % file.placement.experts for slot in range(file.placement.slots)]
    named = dict(zip(file.layer_ids, filled_rows(file, "SGLang")))
    return json.dumps({_MAP: [named.get(layer, dense) for layer in range(model_layers)]}).encode()


def _load(path: Path) -> dict[str, Any]:
    if zip_names(path):
        values = read_torch_file(path)
        if isinstance(values, dict):
            # Lists may share parts in a pickle, so that little of a file unpacks to very much.
            return {
                name: value
                for name, value in values.items()
                if isinstance(name, str) and (isinstance(value, np.ndarray) or name == RECORDS)
            }
    else:
        values = parse_json(read_whole(path), path, "")
    if not isinstance(values, dict):
        raise problem(path, "", f"must hold names and values, such as {_COUNTS}")
    return values
