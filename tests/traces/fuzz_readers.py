"""Damages files of every format at random and reads them, for as long as one likes.

python tests/traces/fuzz_readers.py --seconds 600

A file is damaged as it is, or inside what protects it: members of a zip file are damaged and packed again
with the right checksums, so are the chunks of a heat file, and JSON is changed value by value. A reader may
read what is left, or refuse it with one ValueError that names the file; anything else is printed with the
seed that makes it, and so is a read that took long or much memory. Now and then a file is read as one of
another system. What it finds becomes a test in test_mutations.py.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from test_mutations import MAKERS, PIECES, mutate

from isotherm.replay.batches import read_batches
from isotherm.traces.detection import FileFormat, detect_format, holds_placement_alone, located
from isotherm.traces.files import read_heat, read_placement
from isotherm.traces.skew import HeatReport, measure_skew
from isotherm.traces.sources import PlacementFile, Source
from isotherm.traces.trace import HeatTrace

LONG_SECONDS = 5.0
MUCH_MIB = 300
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**70,
    1.5,
    float("nan"),
    "",
    "x",
    "-1",
    [],
    [[]],
    {},
    [1, [2]],
    10**400,
]


def damage(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, anywhere."""
    changes = [
        (
            rng.randrange(2**16),
            rng.choice(["over", "in", "out"]),
            rng.choice(PIECES) if rng.random() < 0.5 else rng.randbytes(rng.randint(1, 4)),
        )
        for _ in range(rng.randint(1, 4))
    ]
    return mutate(data, changes)


def damage_zip(data: bytes, rng: random.Random) -> bytes:
    """One member damaged, or given another name, under right checksums."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = rng.choice(sorted(members))
    if rng.random() < 0.9:
        members[name] = damage(members[name], rng)
    else:
        members[rng.choice(["archive/data.pkl", "a/data/0", "x.npy", name + "x"])] = members.pop(name)
    buffer = io.BytesIO()
    with (
        warnings.catch_warnings(),
        zipfile.ZipFile(buffer, "w", rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as archive,
    ):
        warnings.simplefilter("ignore")
        for each, content in members.items():
            archive.writestr(each, content)
    return buffer.getvalue()


def damage_chunks(data: bytes, rng: random.Random) -> bytes:
    """One chunk of a heat file damaged in its data or its header, under a right length and checksum."""
    out, offset = b"", 0
    chunks = []
    while offset < len(data):
        length = struct.unpack_from("<Q", data, offset)[0]
        header = json.loads(data[offset + 8 : offset + 8 + length])
        begin = offset + 8 + length
        end = begin + max(
            (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0
        )
        chunks.append((header, data[begin:end]))
        offset = end
    victim = rng.randrange(len(chunks))
    for index, (header, content) in enumerate(chunks):
        if index == victim:
            if rng.random() < 0.5 and content:
                content = damage(content, rng)
            else:
                change_value(header, rng)
            if isinstance(header.get("__metadata__"), dict):
                header["__metadata__"]["crc32"] = f"{zlib.crc32(content):08x}"
        text = json.dumps(header).encode()
        out += struct.pack("<Q", len(text)) + text + content
    return out


def change_value(values: Any, rng: random.Random) -> None:
    """One value somewhere in dicts and lists replaced, removed or doubled."""
    here = values
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(here[key], dict | list) and here[key] and rng.random() < 0.8:
            here = here[key]
            continue
        break
    how = rng.randrange(3)
    if how == 0:
        here[key] = rng.choice(VALUES)
    elif how == 1:
        del here[key]
    elif isinstance(here, list):
        here.insert(key, here[key])
    else:
        here[f"{key}x"] = here[key]


def damage_json(data: bytes, rng: random.Random) -> bytes:
    values = json.loads(data)
    change_value(values, rng)
    return json.dumps(values).encode()


def ways(name: str, data: bytes) -> list[Callable[[bytes, random.Random], bytes]]:
    """How a file of this kind can be damaged."""
    found = [damage]
    if data[:2] == b"PK":
        found.append(damage_zip)
    if name == "heat_file":
        found.append(damage_chunks)
    if data[:1] == b"{":
        found.append(damage_json)
    return found


def read_as_inspect_does(path: Path, *, format: FileFormat | None) -> HeatReport | PlacementFile:
    found = format or detect_format(path)
    if holds_placement_alone(path, found):
        return read_placement(path, format=found)
    trace = read_heat(path, format=found, rows_per_window=1)
    report = measure_skew(trace.header, trace)
    assert all(0 <= layer.gini < 1 and layer.max_over_mean >= 1 for layer in report.layers)
    return report


def read_in_steps(path: Path, *, format: FileFormat | None) -> HeatTrace:
    """As `isotherm compare` reads ids of experts per token."""
    del format
    return read_batches(Source(located(path)), batch_tokens=1)


def try_once(seed: int, folder: Path) -> str | None:
    """What is wrong with how readers take the file of this seed; None where nothing is."""
    rng = random.Random(seed)
    name = rng.choice(sorted(MAKERS))
    path = folder / "some"
    MAKERS[name](path)
    target = path
    if path.is_dir():
        target = rng.choice(sorted(path.iterdir()))
    data = target.read_bytes()
    target.write_bytes(rng.choice(ways(name, data))(data, rng))
    forced = rng.choice((None, None, None, *get_args(FileFormat)))
    begun, peak = time.thread_time(), peak_mib()
    for read in (read_heat, read_placement, read_as_inspect_does, read_in_steps):
        try:
            found = read(path, format=forced)
            if isinstance(found, HeatTrace):
                assert all(window.heat_KSLE.min() >= 0 for window in found)
        except ValueError as error:
            if not str(error).startswith(str(path)):
                return f"{name}: {read.__name__}: names no file: {error}"
        except Exception:
            return f"{name}: {read.__name__}: {traceback.format_exc()}"
    seconds = time.thread_time() - begun
    grown = peak_mib() - peak
    if seconds > LONG_SECONDS or grown > MUCH_MIB:
        return f"{name}, read as {forced}: took {seconds:.1f} s and {grown} MiB"
    return None


def peak_mib() -> int:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument(
        "--seed", type=int, default=0, help="the first; a failure is made again with --seconds 0"
    )
    options = parser.parse_args()
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", UserWarning)  # numpy's and zipfile's, of odd headers and names
    begun, seed, wrong = time.monotonic(), options.seed, 0
    while True:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            said = try_once(seed, folder)
        finally:
            shutil.rmtree(folder)
        if said is not None:
            wrong += 1
            print(f"seed {seed}: {said}", flush=True)
        seed += 1
        if time.monotonic() - begun >= options.seconds:
            break
    print(f"{seed - options.seed} files, {wrong} wrong, at most {peak_mib()} MiB")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
