"""numpy's files, read without pickle and without trust in what their headers promise."""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from isotherm.traces.problems import LARGEST_BYTES, problem, shortened

NPY_BEGINS = b"\x93NUMPY"
ZIP_BEGINS = b"PK\x03\x04"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    IndexError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
)
"""What zipfile lets through of a file that it does not understand."""


@dataclass(frozen=True)
class NpyHeader:
    """What the header of an ``.npy`` file promises."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[np.generic]

    @property
    def data_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(stream: IO[bytes], path: Path, place: str) -> NpyHeader:
    """The header at the beginning of an ``.npy`` file; the stream is left at the data.

    Raises:
        ValueError: there is none, or it promises anything but plain numbers or text.
    """
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"version {version} is none of 1.0 and 2.0")
        header = NpyHeader(*_HEADERS[version](stream))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise problem(path, place, f"not an array of numpy: {shortened(str(error))}") from error
    dtype = header.dtype
    if dtype.hasobject or dtype.fields is not None or dtype.subdtype is not None or not dtype.itemsize:
        raise problem(path, place, f"dtype {dtype} is not admitted: give plain numbers")
    if any(size < 0 for size in header.shape):
        raise problem(path, place, f"shape {header.shape} is negative")
    return header


def parse_npy(data: bytes, path: Path, place: str) -> np.ndarray:
    """The array in the bytes of an ``.npy`` file.

    Raises:
        ValueError: it is none, holds objects, or has other bytes than its header says.
    """
    stream = io.BytesIO(data)
    header = read_npy_header(stream, path, place)
    left = len(data) - stream.tell()
    if left != header.data_bytes:
        raise problem(
            path,
            place,
            f"{header.dtype} of shape {header.shape} takes {header.data_bytes} bytes, and {left} are there",
        )
    order = header.shape[::-1] if header.fortran else header.shape
    array = np.frombuffer(data, header.dtype, offset=stream.tell()).reshape(order)
    return array.T if header.fortran else array


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file by name.

    Raises:
        ValueError: it is none, or unpacks to more than may be read.
    """
    return {
        name.removesuffix(".npy"): parse_npy(data, path, name)
        for name, data in read_zip(path).items()
        if name.endswith(".npy")
    }


def read_zip(path: Path) -> dict[str, bytes]:
    """The members of a zip file by name.

    Raises:
        ValueError: it is none, is damaged, or unpacks to more than may be read.
    """
    data: dict[str, bytes] | None = None
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            total = sum(member.file_size for member in members)
            if total <= LARGEST_BYTES:
                data = {member.filename: archive.read(member) for member in members}
    except OSError as error:
        raise problem(path, "", f"cannot be read: {error.strerror or error}") from error
    except DAMAGED as error:
        raise problem(path, "", f"a damaged zip file: {shortened(str(error))}") from error
    if data is None:
        raise problem(path, "", f"unpacks to {total} bytes; at most {LARGEST_BYTES} are read")
    return data


def zip_names(path: Path) -> tuple[str, ...]:
    """The names of the members of a zip file; none where it is no zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.namelist())
    except (OSError, *DAMAGED):
        return ()
