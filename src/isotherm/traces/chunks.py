"""The safetensors layout: one chunk of bytes that holds named arrays and a few strings.

Source of the layout: the format section of the safetensors README. It is written and read here rather than
by that package, since a heat file is many such chunks behind one another and its windows are found by their
headers alone; the package reads a chunk only where it is a whole file, and its numpy side drops the strings.
The tests hold both to each other.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from isotherm.traces.problems import parse_json, problem, shortened

LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors package itself."""

_METADATA = "__metadata__"
_CHECKSUM = "crc32"
_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One array: its type by the name that safetensors gives it, its shape, its bytes from ``begin`` to
    ``end`` counted from the first byte of data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class ChunkHeader:
    """Where everything is. ``data`` and ``end`` are offsets in the file: of the first byte of data, and
    of the first byte after the chunk."""

    metadata: Mapping[str, str]
    entries: Mapping[str, Entry]
    data: int
    end: int


def pack_chunk(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    """The arrays and strings as one chunk, with a checksum of its data among the strings."""
    parts = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    data = b"".join(part.tobytes() for part in parts.values())
    header: dict[str, Any] = {_METADATA: {**metadata, _CHECKSUM: f"{zlib.crc32(data):08x}"}}
    begin = 0
    for name, part in parts.items():
        end = begin + part.nbytes
        header[name] = {"dtype": _NAMES[part.dtype], "shape": part.shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # data begins at a multiple of 8
    return struct.pack("<Q", len(text)) + text + data


def read_chunk_header(
    file: BinaryIO, offset: int, size: int, path: Path, *, used: int | None = None
) -> ChunkHeader | None:
    """The header of the chunk at ``offset`` of a file of ``size`` bytes; None where the file ends before
    the chunk does. ``used``: the file holds zeros from that byte on, which a crash may leave behind.

    Raises:
        ValueError: what is there is no chunk.
    """
    place = f"byte {offset}"
    file.seek(offset)
    prefix = file.read(8)
    used = size if used is None else used
    if len(prefix) < 8 or used <= offset:
        return None
    length = struct.unpack("<Q", prefix)[0]
    if not 0 < length <= LARGEST_HEADER:
        raise problem(path, place, f"a header of {length} bytes; safetensors allows 1 to {LARGEST_HEADER}")
    data = offset + 8 + length
    if data > used:  # a header ends in a brace or a space, never in zeros
        return None
    parsed = parse_json(file.read(length), path, place)
    if not isinstance(parsed, dict):
        raise problem(path, place, f"the header must be an object, not {shortened(parsed)}")
    metadata = _checked_metadata(parsed.pop(_METADATA, {}), path, place)
    entries = {name: _checked_entry(name, entry, path, place) for name, entry in parsed.items()}
    end = data + _checked_end(entries, path, place)
    return None if end > size else ChunkHeader(metadata, entries, data, end)


def _checked_metadata(metadata: Any, path: Path, place: str) -> Mapping[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise problem(path, place, f"{_METADATA} must map strings to strings")
    return metadata


def _checked_entry(name: str, entry: Any, path: Path, place: str) -> Entry:
    place = f"{place}, array {shortened(name)}"
    try:
        shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
        dtype = entry["dtype"]
    except (KeyError, TypeError, ValueError) as error:
        raise problem(path, place, "must have dtype, shape and data_offsets") from error
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise problem(path, place, f"dtype {shortened(dtype)} is none of {', '.join(_DTYPES)}")
    numbers = (*shape, begin, end)
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise problem(path, place, "shape and data_offsets must be whole numbers")
    if end - begin != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
        raise problem(path, place, f"{dtype} of shape {shape} does not take bytes {begin} to {end}")
    return Entry(dtype, shape, begin, end)


def _checked_end(entries: Mapping[str, Entry], path: Path, place: str) -> int:
    """The bytes of all arrays, which must lie behind one another without holes."""
    end = 0
    for entry in sorted(entries.values(), key=lambda each: (each.begin, each.end)):
        if entry.begin != end:
            raise problem(path, place, f"arrays must lie behind one another; none begins at byte {end}")
        end = entry.end
    return end


def read_arrays(file: BinaryIO, header: ChunkHeader, path: Path) -> dict[str, np.ndarray]:
    """The arrays of a chunk, read-only.

    Raises:
        ValueError: the data is not what was written.
    """
    file.seek(header.data)
    data = file.read(header.end - header.data)
    wanted = header.metadata.get(_CHECKSUM)
    if len(data) != header.end - header.data:
        raise problem(path, f"byte {header.data}", "the file became shorter while it was read")
    if wanted is not None and wanted != f"{zlib.crc32(data):08x}":
        raise problem(path, f"bytes {header.data} to {header.end}", "damaged: the checksum differs")
    return {
        name: np.frombuffer(data[entry.begin : entry.end], _DTYPES[entry.dtype]).reshape(entry.shape)
        for name, entry in header.entries.items()
    }
