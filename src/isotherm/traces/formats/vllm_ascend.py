"""vLLM Ascend: ``expert_map.json``."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from isotherm.traces.formats.rows import filled_rows, is_row_of_experts, placement_of
from isotherm.traces.problems import parse_json, problem, read_whole
from isotherm.traces.sources import PlacementFile, Source


def read_vllm_ascend_placement(source: Source) -> PlacementFile:
    """The placement of an expert map. Its lists are read by position, as the engine reads them: what they
    say of ``layer_id`` and ``device_id`` is passed over."""
    values = parse_json(read_whole(source.path), source.path, "")
    layers = values.get("layer_list") if isinstance(values, dict) else None
    if not isinstance(layers, list) or not layers:
        raise problem(source.path, "layer_list", "must be a list of at least one layer")
    rows, ranks = [], set()
    for number, layer in enumerate(layers):
        devices = _devices(layer, source, number)
        ranks.add(len(devices))
        rows.append([expert for device in devices for expert in device])
    if len({len(row) for row in rows}) > 1 or len(ranks) > 1:
        raise problem(source.path, "layer_list", "every layer must have equally many devices and slots")
    declared = values.get("moe_layer_count", len(rows))
    if declared != len(rows):
        raise problem(source.path, "moe_layer_count", f"{declared!r} is not the {len(rows)} layers there are")
    return placement_of(rows, source, "layer_list", ranks=ranks.pop())


def _devices(layer: Any, source: Source, number: int) -> list[list[int]]:
    place = f"layer_list[{number}]"
    devices = layer.get("device_list") if isinstance(layer, dict) else None
    if not isinstance(devices, list) or not devices:
        raise problem(source.path, place, "device_list must be a list of at least one device")
    rows: list[list[int]] = []
    for rank, device in enumerate(devices):
        row = device.get("device_expert") if isinstance(device, dict) else None
        if not isinstance(row, list) or not is_row_of_experts(row) or (rows and len(row) != len(rows[0])):
            raise problem(
                source.path,
                f"{place}.device_list[{rank}]",
                "device_expert must be a list of experts, as long as those of the other devices",
            )
        rows.append(row)
    return rows


def pack_vllm_ascend(file: PlacementFile) -> bytes:
    """The expert map: MoE layers in order, numbered from 0 as the engine's own maps are.

    Raises:
        ValueError: it is not known over how many ranks the slots lie, a slot is empty, or a rank holds an
            expert twice.
    """
    if file.ranks is None:
        raise ValueError(
            f"vLLM Ascend wants the slots of each device, and of {file.placement.slots} slots it is not "
            "known over how many ranks they lie: give ranks= (--ranks)"
        )
    size = file.placement.slots // file.ranks
    rows = filled_rows(file, "vLLM Ascend")
    _check_once(file, file.ranks)
    layers = [
        {
            "layer_id": number,
            "device_count": file.ranks,
            "device_list": [
                {"device_id": rank, "device_expert": row[rank * size : (rank + 1) * size]}
                for rank in range(file.ranks)
            ],
        }
        for number, row in enumerate(rows)
    ]
    return json.dumps({"moe_layer_count": len(layers), "layer_list": layers}).encode()


def _check_once(file: PlacementFile, ranks: int) -> None:
    """The engine's map has one entry for each rank and expert: a second replica there is never used."""
    sorted_LGS = np.sort(file.placement.slot_to_expert.reshape(file.placement.layers, ranks, -1), axis=2)
    twice = np.argwhere((sorted_LGS[..., 1:] == sorted_LGS[..., :-1]) & (sorted_LGS[..., 1:] >= 0))
    if len(twice):
        layer, rank, place = twice[0]
        expert = sorted_LGS[layer, rank, place]
        raise ValueError(
            f"layer {file.layer_ids[layer]}: rank {rank} holds expert {expert} twice, and vLLM Ascend "
            "knows one of each on a rank: plan for it (engine='vllm-ascend', or --format vllm-ascend)"
        )
