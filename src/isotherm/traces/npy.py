"""numpy's files, read without pickle and without trust in what their headers promise."""

from __future__ import annotations

import io
import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from isotherm.traces.problems import LARGEST_BYTES, problem, shortened

NPY_BEGINS = b"\x93NUMPY"
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

# What zipfile lets through of a file that it does not understand.
_DAMAGED = (
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


def parse_npy(data: bytes, path: Path, place: str) -> np.ndarray:
    """The array in the bytes of an ``.npy`` file.

    Raises:
        ValueError: it is none, holds objects, or has other bytes than its header says.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"version {version} is none of 1.0 and 2.0")
        shape, fortran, dtype = _HEADERS[version](stream)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise problem(path, place, f"not an array of numpy: {shortened(str(error))}") from error
    if dtype.hasobject or dtype.fields is not None:
        raise problem(path, place, f"dtype {dtype} is not admitted: give plain numbers")
    left = len(data) - stream.tell()
    wanted = math.prod(shape) * dtype.itemsize
    if left != wanted or any(size < 0 for size in shape):
        raise problem(path, place, f"{dtype} of shape {shape} takes {wanted} bytes, and {left} are there")
    order = shape[::-1] if fortran else shape
    if dtype.itemsize == 0:
        raise problem(path, place, f"dtype {dtype} holds nothing")
    array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(order)
    return array.T if fortran else array


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
    except _DAMAGED as error:
        raise problem(path, "", f"a damaged zip file: {shortened(str(error))}") from error
    if data is None:
        raise problem(path, "", f"unpacks to {total} bytes; at most {LARGEST_BYTES} are read")
    return data


def zip_names(path: Path) -> tuple[str, ...]:
    """The names of the members of a zip file; none where it is no zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.namelist())
    except (OSError, *_DAMAGED):
        return ()
