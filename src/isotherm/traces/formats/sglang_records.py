"""Records of SGLang's recorder, one for each forward pass and rank: the modes ``per_pass`` and ``per_token``.

Every rank writes a file of its own, with the tokens that it saw: those of one pass are added up over the
files of a folder, as SGLang's own reader does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.placement import Placement
from isotherm.traces.formats.rows import placement_of
from isotherm.traces.matrices import LARGEST_COUNT, trace_of
from isotherm.traces.problems import LARGEST_BYTES, problem
from isotherm.traces.sources import Source
from isotherm.traces.trace import HeatTrace

RECORDS = "records"
LAST_MAP = "last_physical_to_logical_map"
_PHYSICAL = "global_physical_count"
_PREFILL, _DECODE = 0, 1
# The numbers of ForwardMode: EXTEND and DECODE. Of the others, one mixes both.
_KIND_OF_MODE = {1: _PREFILL, 2: _DECODE}


@dataclass
class _Passes:
    """Counts of slots of each pass, added up as records come."""

    counts: dict[int, Int64Array] = field(default_factory=dict)
    kinds: dict[int, int | None] = field(default_factory=dict)
    seen: set[tuple[int, int, str]] = field(default_factory=set)

    def add(self, record: Any, shape_LP: tuple[int, ...], path: Path, place: str) -> None:
        counts_LP = record.get(_PHYSICAL) if isinstance(record, dict) else None
        if not isinstance(counts_LP, np.ndarray) or counts_LP.shape != shape_LP:
            raise problem(path, place, f"{_PHYSICAL} must have the shape {shape_LP} of {LAST_MAP}")
        if counts_LP.dtype.kind not in "iu":
            raise problem(path, place, f"{_PHYSICAL} must be whole numbers")
        if counts_LP.min() < 0 or counts_LP.max() > LARGEST_COUNT:  # sums over slots and ranks might hide it
            raise problem(path, place, f"{_PHYSICAL} must be from 0 to {LARGEST_COUNT}")
        number, rank = record.get("forward_pass_id", len(self.seen)), record.get("rank", 0)
        if type(number) is not int or type(rank) is not int:
            raise problem(path, place, "forward_pass_id and rank must be whole numbers")
        # Several gatherers of one pass, as of two micro-batches, each count a part of it.
        key = (number, rank, str(record.get("gatherer_key")))
        if key in self.seen:
            raise problem(path, place, f"pass {number} of rank {rank} is there twice")
        self.seen.add(key)
        if number not in self.counts and (len(self.counts) + 1) * counts_LP.size * 8 > LARGEST_BYTES:
            raise problem(path, place, f"unpacks to more than {LARGEST_BYTES} bytes")
        self.counts[number] = self.counts.get(number, 0) + counts_LP.astype(np.int64)
        mode = record.get("forward_mode")
        kind = _KIND_OF_MODE.get(mode) if type(mode) is int else None
        if counts_LP.any():
            self.kinds[number] = kind if self.kinds.get(number, kind) == kind else None

    @property
    def ranks(self) -> int:
        return len({rank for _, rank, _ in self.seen})


def trace_of_records(dumps: Mapping[Path, Mapping[str, Any]], source: Source) -> HeatTrace:
    """The trace in the records of one dump, or of those of several ranks, by the map that they end with.

    Passes of the mode ``per_token`` say whether they are prefill or decode; where all do, the kinds are kept
    apart.

    Raises:
        ValueError: what there is are no such records; the message names file and place.
    """
    passes, placement = _Passes(), None
    for path, values in dumps.items():
        records = values.get(RECORDS)
        found = _placement(values, path)
        if placement is not None and found != placement:
            raise problem(path, LAST_MAP, "is another than in the other files: experts moved in between")
        placement = found
        if not isinstance(records, list) or not records:
            raise problem(path, RECORDS, "must be a list of at least one record")
        for number, record in enumerate(records):
            passes.add(record, placement.slot_to_expert.shape, path, f"{RECORDS}[{number}]")
    assert placement is not None, "there is a dump"
    numbers = sorted(passes.counts)
    counts_TLE = _folded([passes.counts[number] for number in numbers], placement)
    kinds = [passes.kinds.get(number, _DECODE) for number in numbers]  # without a token it is of either
    trace = trace_of(
        counts_TLE,
        source,
        engine="SGLang",
        place=RECORDS,
        kind_T=None if None in kinds else np.array(kinds),
    )
    if len(dumps) > 1 or passes.ranks > 1:
        return trace
    alone = "the records of one rank, which may have seen its own tokens alone: a folder of all is added up"
    return HeatTrace(trace.header, trace.windows, (*trace.notes, alone))


def _placement(values: Mapping[str, Any], path: Path) -> Placement:
    map_LP = values.get(LAST_MAP)
    if not isinstance(map_LP, np.ndarray) or map_LP.ndim != 2 or map_LP.dtype.kind != "i" or not map_LP.size:
        raise problem(path, LAST_MAP, "must be whole numbers [layers, slots]")
    return placement_of(map_LP, Source(path), LAST_MAP).placement


def _folded(counts: list[Int64Array], placement: Placement) -> Int64Array:
    """Counts of slots made counts of experts, int64 [passes, layers, experts]."""
    counts_TLE = np.zeros((len(counts), placement.layers, placement.experts), np.int64)
    layer = np.arange(placement.layers)[:, None]
    for row, counts_LP in enumerate(counts):
        np.add.at(counts_TLE[row], (layer, placement.slot_to_expert), counts_LP)
    return counts_TLE
