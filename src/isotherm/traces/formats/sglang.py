"""SGLang: dumps of its expert distribution recorder, published statistics, and initial expert locations."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from isotherm.traces.formats.rows import filled_rows, placement_of
from isotherm.traces.matrices import trace_of
from isotherm.traces.npy import zip_names
from isotherm.traces.pickles import read_torch_file
from isotherm.traces.problems import parse_json, problem, read_whole
from isotherm.traces.sources import PlacementFile, Source
from isotherm.traces.trace import HeatTrace

_COUNTS = "logical_count"
_MAP = "physical_to_logical_map"
_RECORDS = "records"
_PHYSICAL = "global_physical_count"
_LAST_MAP = "last_physical_to_logical_map"


def read_sglang_heat(source: Source) -> HeatTrace:
    """Counts of a dump (``.pt``, of either mode) or of statistics (JSON).

    A dump of the mode ``stat`` has a row per forward pass, and rows without heat where its buffer was not
    full. One of the mode ``per_pass`` has counts of slots, which are folded by the map that it ends with.
    """
    values = _load(source)
    if _COUNTS in values:
        return trace_of(values[_COUNTS], source, engine="SGLang", place=_COUNTS)
    if _RECORDS in values:
        return trace_of(_fold_records(values, source), source, engine="SGLang", place=_RECORDS)
    raise problem(source.path, "", f"has neither {_COUNTS} nor {_RECORDS}")


def read_sglang_placement(source: Source) -> PlacementFile:
    """The map of an initial expert location, or the one that a dump ends with: a row for every layer of the
    model, of which ``moe_layers`` leaves the dense ones out."""
    values = _load(source)
    for name in (_MAP, _LAST_MAP):
        if name in values:
            return _whole_model(placement_of(values[name], source, name), source)
    raise problem(source.path, "", f"has neither {_MAP} nor {_LAST_MAP}")


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


def _load(source: Source) -> dict[str, Any]:
    if zip_names(source.path):
        values = read_torch_file(source.path)
        if isinstance(values, dict):
            # Lists may share parts in a pickle, so that little of a file unpacks to very much.
            return {
                name: value
                for name, value in values.items()
                if isinstance(name, str) and (isinstance(value, np.ndarray) or name == _RECORDS)
            }
    else:
        values = parse_json(read_whole(source.path), source.path, "")
    if not isinstance(values, dict):
        raise problem(source.path, "", f"must hold names and values, such as {_COUNTS}")
    return values


def _fold_records(values: dict[str, Any], source: Source) -> np.ndarray:
    """Counts [passes, layers, experts] of records with counts of slots."""
    map_LP, records = values.get(_LAST_MAP), values[_RECORDS]
    if not isinstance(map_LP, np.ndarray) or map_LP.ndim != 2 or map_LP.dtype.kind != "i" or not map_LP.size:
        raise problem(source.path, _LAST_MAP, "must be whole numbers [layers, slots]")
    if not isinstance(records, list) or not records:
        raise problem(source.path, _RECORDS, "must be a list of at least one record")
    placement = placement_of(map_LP, Source(source.path), _LAST_MAP).placement
    passes: dict[Any, np.ndarray] = {}
    for number, record in enumerate(records):
        place = f"{_RECORDS}[{number}]"
        counts_LP = record.get(_PHYSICAL) if isinstance(record, dict) else None
        if not isinstance(counts_LP, np.ndarray) or counts_LP.shape != map_LP.shape:
            raise problem(
                source.path, place, f"{_PHYSICAL} must have the shape {map_LP.shape} of {_LAST_MAP}"
            )
        if counts_LP.dtype.kind not in "iu":
            raise problem(source.path, place, f"{_PHYSICAL} must be whole numbers")
        forward = record.get("forward_pass_id", number)
        if not isinstance(forward, int):
            raise problem(source.path, place, "forward_pass_id must be a whole number")
        counts_LP = counts_LP.astype(np.int64)
        # Several gatherers of one pass, as of two micro-batches, each count a part of it.
        passes[forward] = passes[forward] + counts_LP if forward in passes else counts_LP
    counts_TLE = np.zeros((len(passes), placement.layers, placement.experts), np.int64)
    layer = np.arange(placement.layers)[:, None]
    for row, forward in enumerate(sorted(passes)):
        np.add.at(counts_TLE[row], (layer, map_LP), passes[forward])
    return counts_TLE
