"""TensorRT-LLM: folders of statistics, and load balancer configurations."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml  # type: ignore[import-untyped]

from isotherm.placement import Placement
from isotherm.traces.chunks import read_arrays, read_chunk_header
from isotherm.traces.formats.rows import filled_rows, is_row_of_experts, placement_of
from isotherm.traces.matrices import LARGEST_COUNT, trace_of
from isotherm.traces.problems import LARGEST_BYTES, as_whole, parse_json, problem, read_whole, shortened
from isotherm.traces.sources import PlacementFile, Source
from isotherm.traces.trace import HeatTrace

META = "meta_info.json"
ASSIGNMENTS = "initial_global_assignments"

_RANK_FILE = re.compile(r"rank\d+\.safetensors")
_KEY = re.compile(r"(\d{1,9})_(\d{1,9})")
_LARGEST_YAML = 64 * 2**20


def read_tensorrt_llm_heat(source: Source) -> HeatTrace:
    """Counts of a folder of statistics, summed over its ranks: one row per iteration, and the model's own
    layer numbers."""
    if not source.path.is_dir():
        raise problem(
            source.path, "", "statistics of TensorRT-LLM are a folder; its files hold placements alone"
        )
    meta = parse_json(read_whole(source.path / META), source.path / META, "")
    if not isinstance(meta, dict):
        raise problem(source.path / META, "", "must hold num_experts")
    experts = as_whole(meta.get("num_experts"), source.path / META, "num_experts", least=1)
    top_k = as_whole(meta.get("num_experts_per_token"), source.path / META, "num_experts_per_token", least=1)
    counts = _sum_over_ranks(source.path, experts)
    iterations = sorted({iteration for iteration, _ in counts})
    layers = sorted({layer for _, layer in counts})
    missing = [(i, layer) for i in iterations for layer in layers if (i, layer) not in counts]
    if missing:
        iteration, layer = missing[0]
        raise problem(source.path, f"iteration {iteration}, layer {layer}", "is in no rank's file")
    if len(iterations) * len(layers) * experts * 8 > LARGEST_BYTES:
        raise problem(source.path, "", f"unpacks to more than {LARGEST_BYTES} bytes")
    counts_TLE = np.array([[counts[i, layer] for layer in layers] for i in iterations])
    named = Source(source.path, None, source.model_layers, source.top_k or top_k, source.rows_per_window)
    return trace_of(counts_TLE, named, engine="TensorRT-LLM", place="counts", layer_ids=tuple(layers))


def _sum_over_ranks(folder: Path, experts: int) -> dict[tuple[int, int], np.ndarray]:
    files = sorted(path for path in folder.iterdir() if _RANK_FILE.fullmatch(path.name))
    if not files:
        raise problem(folder, "", "has no rank0.safetensors")
    counts: dict[tuple[int, int], np.ndarray] = {}
    for path in files:
        for name, array in _read_safetensors(path).items():
            key = _KEY.fullmatch(name)
            if key is None or array.shape != (experts,) or array.dtype.kind not in "iu":
                raise problem(
                    path, shortened(name), f"must be named ITERATION_LAYER and hold {experts} whole numbers"
                )
            if array.min() < 0 or array.max() > LARGEST_COUNT:  # the sum over ranks might hide it
                raise problem(path, name, f"counts must be from 0 to {LARGEST_COUNT}")
            where = (int(key[1]), int(key[2]))
            counts[where] = counts.get(where, 0) + array.astype(np.int64)
    if not counts:
        raise problem(folder, "", "holds no counts")
    return counts


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise problem(path, "", f"{size} bytes are more than {LARGEST_BYTES}, the most that is read")
        with path.open("rb") as file:
            header = read_chunk_header(file, 0, size, path)
            if header is None or header.end != size:
                raise problem(path, "", "is cut short, or goes on behind its arrays")
            return read_arrays(file, header, path)
    except OSError as error:
        raise problem(path, "", f"cannot be read: {error.strerror or error}") from error


def read_tensorrt_llm_placement(source: Source) -> PlacementFile:
    """The assignments of a load balancer configuration, YAML or JSON: layers by the model's numbers, the
    slots of a rank one after another."""
    values = _parse_yaml(source.path)
    assignments = values.get(ASSIGNMENTS) if isinstance(values, dict) else None
    if not isinstance(assignments, dict) or not assignments:
        raise problem(source.path, ASSIGNMENTS, "must map layers to lists of experts")
    slots = as_whole(values.get("num_slots"), source.path, "num_slots", least=1)
    rows: dict[int, list[int]] = {}
    for key, row in assignments.items():
        place = f"{ASSIGNMENTS}[{shortened(key)}]"
        # JSON has no other keys than strings.
        layer = int(key) if isinstance(key, str) and re.fullmatch(r"\d{1,9}", key) else key
        as_whole(layer, source.path, place)
        if not is_row_of_experts(row) or len(row) != slots or layer in rows:
            raise problem(source.path, place, f"must be one list of num_slots={slots} experts")
        rows[layer] = row
    layers = tuple(sorted(rows))
    return placement_of([rows[layer] for layer in layers], source, ASSIGNMENTS, layer_ids=layers)


def _parse_yaml(path: Path) -> Any:
    data = read_whole(path)
    if len(data) > _LARGEST_YAML:
        raise problem(path, "", f"{len(data)} bytes of YAML are more than {_LARGEST_YAML}")
    if data.lstrip()[:1] == b"{":
        return parse_json(data, path, "")
    try:
        # The loader in Python: deep nesting ends in an error there, and in the one in C with the process.
        return yaml.load(data, yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, KeyError, AttributeError) as error:
        text = " ".join(str(error).split()) if not isinstance(error, RecursionError) else "nested too deeply"
        raise problem(path, "", f"not YAML: {text[:300]}") from error


def with_draft_layers(file: PlacementFile, count: int) -> PlacementFile:
    """The placement with ``count`` layers behind those of the model, for multi-token prediction: the engine
    asks for a row of each. Nobody knows their heat, so slot ``p`` holds expert ``p % experts``.

    Raises:
        ValueError: it is not known how many layers the model has.
    """
    if file.model_layers is None:
        raise ValueError(
            f"mtp_layers={count} come behind the model's own, and it is not known how many those are: give "
            "model_layers= (--model-layers)"
        )
    first, experts = file.model_layers, file.placement.experts
    row_P = np.arange(file.placement.slots) % experts
    rows_LP = np.concatenate([file.placement.slot_to_expert, np.tile(row_P, (count, 1))])
    return replace(
        file,
        placement=Placement(rows_LP, experts),
        layer_ids=(*file.layer_ids, *range(first, first + count)),
        model_layers=first + count,
    )


def pack_tensorrt_llm(file: PlacementFile) -> bytes:
    """The configuration as YAML. ``layer_updates_per_iter: 0``: the engine leaves the placement as it is.

    Raises:
        ValueError: a slot is empty.
    """
    rows = filled_rows(file, "TensorRT-LLM")
    lines = [f"{ASSIGNMENTS}:"]
    lines += [f"  {layer}: [{', '.join(map(str, row))}]" for layer, row in zip(file.layer_ids, rows)]
    lines += [f"num_slots: {file.placement.slots}", "layer_updates_per_iter: 0", ""]
    return "\n".join(lines).encode()
