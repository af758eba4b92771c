"""What is wrong with a file, said in one way: the file, the place in it, the rule it breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LARGEST_BYTES = 2**31
"""No file that is read whole, and no array that a file unpacks to, may be larger than this."""

_LARGEST_JSON = 2**28  # its objects take 10 to 30 times as much
_SHOWN = 120


def problem(path: Path, place: str, rule: str) -> ValueError:
    """The error to raise for ``path``. ``place`` may be empty where the whole file is meant."""
    return ValueError(f"{path}: {place}: {rule}" if place else f"{path}: {rule}")


def shortened(value: object) -> str:
    """``value`` as an error shows it: what a file holds may be of any length."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def read_whole(path: Path) -> bytes:
    """The bytes of a file that must fit in memory.

    Raises:
        ValueError: the file cannot be read, or is larger than ``LARGEST_BYTES``.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise problem(path, "", f"{size} bytes are more than {LARGEST_BYTES}, the most that is read")
        return path.read_bytes()
    except OSError as error:
        raise problem(path, "", f"cannot be read: {error.strerror or error}") from error


def parse_json(data: bytes, path: Path, place: str) -> Any:
    """``data`` as JSON.

    Raises:
        ValueError: it is none, or is nested too deeply to be what we look for.
    """
    if len(data) > _LARGEST_JSON:
        raise problem(path, place, f"{len(data)} bytes of JSON are more than {_LARGEST_JSON}")
    try:
        return json.loads(data)
    except RecursionError as error:
        raise problem(path, place, "JSON that is nested too deeply") from error
    except ValueError as error:
        raise problem(path, place, f"not JSON: {error}") from error


def as_whole(value: Any, path: Path, place: str, *, least: int = 0) -> int:
    """``value`` if it is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
        raise problem(path, place, f"{shortened(value)} must be a whole number from {least}")
    return value
