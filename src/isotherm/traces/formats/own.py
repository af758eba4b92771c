"""Our own placements: an ``.npz`` that numpy alone can read."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from isotherm.traces.formats.rows import placement_of
from isotherm.traces.npy import read_npz
from isotherm.traces.problems import problem
from isotherm.traces.sources import PlacementFile, Source

SLOTS = "slot_to_expert_LP"


def pack_own(file: PlacementFile) -> bytes:
    """``slot_to_expert_LP`` int32 [layers, slots] (-1: empty), ``layer_ids`` int64 [layers], and ``experts``,
    ``ranks``, ``model_layers`` int64 [], 0 where it is not known."""
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {
        SLOTS: file.placement.slot_to_expert,
        "layer_ids": np.array(file.layer_ids, np.int64),
        "experts": np.array(file.placement.experts, np.int64),
        "ranks": np.array(file.ranks or 0, np.int64),
        "model_layers": np.array(file.model_layers or 0, np.int64),
    }
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read_own_placement(source: Source) -> PlacementFile:
    """What `pack_own` made."""
    arrays = read_npz(source.path)
    numbers = {}
    for name, dimensions in (("experts", 0), ("ranks", 0), ("model_layers", 0), ("layer_ids", 1)):
        array = arrays.get(name)
        if array is None or array.ndim != dimensions or array.dtype.kind != "i":
            raise problem(source.path, name, f"must be there, whole numbers of {dimensions} dimensions")
        numbers[name] = array
    told = Source(source.path, None, int(numbers["model_layers"]) or source.model_layers)
    return placement_of(
        arrays.get(SLOTS, np.zeros(0)),
        told,
        SLOTS,
        layer_ids=tuple(numbers["layer_ids"].tolist()),
        experts=int(numbers["experts"]),
        ranks=int(numbers["ranks"]) or None,
    )
