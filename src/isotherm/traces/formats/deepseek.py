"""Arrays as DeepSeek's EPLB takes and gives them, in numpy's files."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.placement import Placement
from isotherm.traces.formats.rows import filled_rows, placement_of
from isotherm.traces.matrices import trace_of
from isotherm.traces.npy import NPY_BEGINS, parse_npy, read_npz
from isotherm.traces.problems import problem, read_whole
from isotherm.traces.sources import PlacementFile, Source
from isotherm.traces.trace import HeatTrace

WEIGHTS = ("weight", "heat", "logical_count", "expert_load")
MAP = "phy2log"
_COUNTS = "logcnt"
_LAYERS = "layer_ids"


def read_deepseek_heat(source: Source) -> HeatTrace:
    """The array ``weight`` of an ``.npz`` (or the only one), or an ``.npy``: [layers, experts], or
    [rows, layers, experts]."""
    arrays = _load(source)
    names = [name for name in WEIGHTS if name in arrays] or (list(arrays) if len(arrays) == 1 else [])
    if not names:
        raise problem(source.path, "", f"holds {sorted(arrays)}, and none of {', '.join(WEIGHTS)}")
    return trace_of(arrays[names[0]], source, engine="", place=names[0])


def read_deepseek_placement(source: Source) -> PlacementFile:
    """The array ``phy2log`` [layers, slots] of an ``.npz`` (or the only one), or an ``.npy``."""
    arrays = _load(source)
    if MAP not in arrays and len(arrays) != 1:
        raise problem(source.path, "", f"holds {sorted(arrays)}, and no {MAP}")
    name = MAP if MAP in arrays else next(iter(arrays))
    experts = arrays[_COUNTS].shape[-1] if _COUNTS in arrays and arrays[_COUNTS].ndim == 2 else None
    layers = arrays.get(_LAYERS)
    layer_ids = None
    if layers is not None:
        if layers.dtype.kind not in "iu" or layers.ndim != 1:
            raise problem(source.path, _LAYERS, "must be whole numbers [layers]")
        layer_ids = tuple(layers.tolist())
    return placement_of(arrays[name], source, name, layer_ids=layer_ids, experts=experts)


def pack_deepseek(file: PlacementFile) -> bytes:
    """An ``.npz`` with what ``rebalance_experts`` returns, ``phy2log``, ``log2phy`` (padded with -1) and
    ``logcnt``, int64, and ``layer_ids``.

    Raises:
        ValueError: a slot is empty.
    """
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        MAP: np.array(filled_rows(file, "DeepSeek's EPLB"), np.int64),
        "log2phy": _slots_of_experts(file.placement),
        _COUNTS: file.placement.replicas_LE,
        _LAYERS: np.array(file.layer_ids, np.int64),
    }
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _slots_of_experts(placement: Placement) -> Int64Array:
    """int64 [layers, experts, most replicas]: the slots of each expert in ascending order, then -1."""
    counts_LE = placement.replicas_LE
    slots_LEX = np.full((*counts_LE.shape, int(counts_LE.max())), -1, np.int64)
    for layer, row_P in enumerate(placement.slot_to_expert):
        order = np.argsort(row_P, kind="stable")
        first_E = np.cumsum(counts_LE[layer]) - counts_LE[layer]
        expert_P = row_P[order]
        slots_LEX[layer, expert_P, np.arange(len(order)) - first_E[expert_P]] = order
    return slots_LEX


def _load(source: Source) -> dict[str, np.ndarray]:
    data = read_whole(source.path)
    if data.startswith(NPY_BEGINS):
        return {"array": parse_npy(data, source.path, "")}
    return read_npz(source.path)
