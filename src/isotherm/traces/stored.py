"""Heat files, read: windows are found at once and read when they are asked for. docs/heat-file.md has the
layout."""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, overload

import numpy as np

from isotherm.placement import Placement
from isotherm.traces.chunks import ChunkHeader, read_arrays, read_chunk_header
from isotherm.traces.header import ON_REQUEST, HeatHeader
from isotherm.traces.planes import inflate_counts
from isotherm.traces.problems import LARGEST_BYTES, parse_json, problem, shortened
from isotherm.traces.trace import HeatTrace
from isotherm.window import HeatWindow

ROLE = "isotherm"
"""The string of a chunk that says what it is: ``header``, ``placement`` or ``window``."""

TIME = "unix_seconds"
"""The string of a window that says when it ended."""

LARGEST_SLICES = 4096

_LATEST = 253_402_300_800  # the year 10000, which no calendar here knows
_SECONDS = re.compile(r"\d{1,12}(\.\d{1,9})?")
_BEGINS = f'{{"__metadata__":{{"{ROLE}":"'.encode()  # the JSON of each chunk that `pack_chunk` makes


@dataclass(frozen=True, eq=False)
class StoredWindows(Sequence[HeatWindow]):
    """The windows of a heat file, each read when it is asked for."""

    path: Path
    header: HeatHeader
    offsets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.offsets)

    @overload
    def __getitem__(self, index: int) -> HeatWindow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[HeatWindow]: ...
    def __getitem__(self, index: int | slice) -> HeatWindow | Sequence[HeatWindow]:
        if isinstance(index, slice):
            return StoredWindows(self.path, self.header, self.offsets[index])
        with self.path.open("rb") as file:
            return self._read(file, self.offsets[index])

    def __iter__(self) -> Iterator[HeatWindow]:
        with self.path.open("rb") as file:
            for offset in self.offsets:
                yield self._read(file, offset)

    def _read(self, file: BinaryIO, offset: int) -> HeatWindow:
        size = self.path.stat().st_size
        chunk = read_chunk_header(file, offset, size, self.path)
        if chunk is None:
            raise problem(self.path, f"byte {offset}", "the file became shorter while it was read")
        try:
            return _unpack_window(read_arrays(file, chunk, self.path), self.header)
        except ValueError as error:
            raise _at(self.path, offset, error) from error


@dataclass
class Layout:
    """Where the chunks of a heat file are: ``end`` is the first byte behind the last complete one, ``size``
    the bytes of the file."""

    header: HeatHeader
    size: int
    end: int
    windows: list[int] = field(default_factory=list)
    times: list[float | None] = field(default_factory=list)
    placements: list[tuple[int, Placement]] = field(default_factory=list)


def is_heat_file(path: Path) -> bool:
    """Whether the file begins as a heat file does."""
    try:
        with path.open("rb") as file:
            chunk = read_chunk_header(file, 0, path.stat().st_size, path)
    except (OSError, ValueError):
        return False
    return chunk is not None and chunk.metadata.get(ROLE) == "header"


def read_heat_file(path: Path) -> HeatTrace:
    """The trace in a heat file, up to its last complete window.

    Raises:
        ValueError: the file is none, is damaged in the middle, or has no complete window.
    """
    layout = scan_layout(path)
    if not layout.windows:
        raise problem(path, "", "holds no complete window")
    left = layout.size - layout.end
    notes = (f"the last {left} bytes are an incomplete window and left out",) if left else ()
    windows = StoredWindows(path, layout.header, tuple(layout.windows))
    times = tuple(layout.times) if any(time is not None for time in layout.times) else ()
    return HeatTrace(layout.header, windows, notes, tuple(layout.placements), times)


def scan_layout(path: Path) -> Layout:
    """Finds every complete chunk; of the windows reads the last alone, whose bytes a crash may have lost.

    Raises:
        ValueError: the file is none, or is damaged before its last chunk.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            layout = _read_header(file, size, path)
            used = _without_zeros(file, size)
            while (chunk := read_chunk_header(file, layout.end, size, path, used=used)) is not None:
                if chunk.end >= used and not _is_sound(file, chunk, path):
                    break
                _note_chunk(file, chunk, path, layout)
                layout.end = chunk.end
            if _goes_on(file, layout.end, size):
                raise problem(path, f"byte {layout.end}", "a damaged chunk, and others follow it")
    except OSError as error:
        raise problem(path, "", f"cannot be read: {error.strerror or error}") from error
    return layout


def _read_header(file: BinaryIO, size: int, path: Path) -> Layout:
    chunk = read_chunk_header(file, 0, size, path)
    if chunk is None or chunk.metadata.get(ROLE) != "header":
        raise problem(path, "byte 0", "a heat file begins with a chunk whose role is 'header'")
    values = parse_json(chunk.metadata.get("header", "").encode(), path, "header")
    if not isinstance(values, dict):
        raise problem(path, "header", f"must be an object, not {shortened(values)}")
    try:
        header = HeatHeader.from_dict(values)
    except ValueError as error:
        raise problem(path, "header", str(error)) from error
    shape_KLE = (len(header.kinds), len(header.layer_ids), header.experts)
    if 8 * math.prod(shape_KLE) > LARGEST_BYTES:
        raise problem(
            path,
            "header",
            f"heat of {shape_KLE} [kinds, layers, experts] takes more than {LARGEST_BYTES} bytes",
        )
    return Layout(header, size, chunk.end)


def _without_zeros(file: BinaryIO, size: int) -> int:
    """The bytes of the file without the zeros at its end."""
    block = 1 << 20
    for end in range(size, 0, -block):
        begin = max(0, end - block)
        file.seek(begin)
        used = len(file.read(end - begin).rstrip(b"\0"))
        if used:
            return begin + used
    return 0


def _goes_on(file: BinaryIO, start: int, size: int) -> bool:
    """Whether a chunk begins behind the one at ``start``, which is not complete: then the file was not cut
    there, and going on at ``start`` would lose what follows."""
    if start == size:
        return False
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        return view.find(_BEGINS, start + 8 + 1) >= 0


def _is_sound(file: BinaryIO, chunk: ChunkHeader, path: Path) -> bool:
    try:
        read_arrays(file, chunk, path)
    except ValueError:
        return False
    return True


def _note_chunk(file: BinaryIO, chunk: ChunkHeader, path: Path, layout: Layout) -> None:
    role = chunk.metadata.get(ROLE)
    if role == "window":
        layout.windows.append(layout.end)
        layout.times.append(_time(chunk, path, layout.end))
    elif role == "placement":
        try:
            placement = _unpack_placement(read_arrays(file, chunk, path), layout.header)
        except ValueError as error:
            raise _at(path, layout.end, error) from error
        layout.placements.append((len(layout.windows), placement))
    else:
        raise problem(path, f"byte {layout.end}", f"a chunk of role {shortened(role)} is unknown")


def _time(chunk: ChunkHeader, path: Path, offset: int) -> float | None:
    text = chunk.metadata.get(TIME)
    if text is None:
        return None
    if not _SECONDS.fullmatch(text) or float(text) >= _LATEST:
        raise problem(path, f"byte {offset}", f"{TIME}={shortened(text)} must be seconds since 1970")
    return float(text)


def _unpack_placement(arrays: dict[str, np.ndarray], header: HeatHeader) -> Placement:
    slot_to_expert_LP = _array(arrays, "slot_to_expert_LP", "i", 2)
    wanted = (len(header.layer_ids), header.topology.slots if header.topology else -1)
    if slot_to_expert_LP.shape != wanted:
        raise ValueError(f"a placement of {slot_to_expert_LP.shape} does not fit the header's {wanted}")
    return Placement(slot_to_expert_LP, header.experts)


def _unpack_window(arrays: dict[str, np.ndarray], header: HeatHeader) -> HeatWindow:
    steps = _array(arrays, "slice_steps", "i", 1)
    if not 2 <= len(steps) <= LARGEST_SLICES + 1:
        raise ValueError(f"{len(steps) - 1} slices; a window has 1 to {LARGEST_SLICES}")
    layers, experts = len(header.layer_ids), header.experts
    shapes: dict[str, tuple[int, ...]] = {"active_steps_LE": (layers, experts)}
    if (topology := header.topology) is not None:
        shapes["slot_load_LGS"] = (layers, topology.ranks, topology.slots_per_rank)
        shapes["source_heat_NLE"] = (topology.nodes, layers, experts)
    found = {name: _counts(arrays, name, shape) for name, shape in shapes.items() if name in arrays}
    window = HeatWindow(
        heat_KSLE=_counts(arrays, "heat_KSLE", (len(header.kinds), len(steps) - 1, layers, experts)),
        slice_steps=tuple(steps.tolist()),
        tokens_K=_array(arrays, "tokens_K", "i", 1),
        layer_ids=header.layer_ids,
        **{name: found.get(name) for name in ON_REQUEST},
    )
    header.check_window(window)
    return window


def _counts(arrays: dict[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if 8 * int(np.prod([float(size) for size in shape])) > LARGEST_BYTES:
        raise ValueError(f"{name} of shape {shape} takes more than {LARGEST_BYTES} bytes")
    try:
        return inflate_counts(_array(arrays, name, "u", 1), shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _array(arrays: dict[str, np.ndarray], name: str, kind: str, dimensions: int) -> np.ndarray:
    array = arrays.get(name)
    if array is None or array.dtype.kind != kind or array.ndim != dimensions:
        raise ValueError(f"{name} is missing, or not integers of {dimensions} dimensions")
    return array


def _at(path: Path, offset: int, error: ValueError) -> ValueError:
    """The error with file and place, where it does not name them already."""
    said = str(error)
    return error if said.startswith(str(path)) else problem(path, f"chunk at byte {offset}", said)
