"""Which experts each token picked: ids in numpy's files, counted block by block, however large the file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.traces.header import HeatHeader
from isotherm.traces.matrices import ALL_KINDS
from isotherm.traces.npy import DAMAGED, NpyHeader, read_npy_header, zip_names
from isotherm.traces.problems import problem, shortened
from isotherm.traces.sources import NamedRows, Source
from isotherm.traces.trace import HeatTrace
from isotherm.window import HeatWindow

IDS = "experts"
TOKENS_PER_WINDOW = 4096
NO_EXPERT = -1

_LARGEST_ID = 2**14
_LARGEST_ROW = 2**12  # ids of a token; with the above, what bounds the memory of a block
_LARGEST_COUNTS = 2**27  # numbers in all windows, 1 GiB


def read_token_ids(source: Source) -> HeatTrace:
    """Ids [tokens, layers, picks], integers, -1 for none: the array ``experts`` of an ``.npz``, or an
    ``.npy``. ``TOKENS_PER_WINDOW`` tokens make a window, whose steps count tokens.

    Raises:
        ValueError: the array is another one, or an id is no expert; the message names token and layer.
    """
    windows: list[Int64Array] = []
    with _opened(source) as (stream, header):
        tokens, top_k = _checked_shape(header, source)
        for start in range(0, tokens, TOKENS_PER_WINDOW):
            count = min(TOKENS_PER_WINDOW, tokens - start)
            block = _read_block(stream, header, count, source)
            windows.append(_counted(block, start, source))
    return _trace(windows, tokens, top_k, source)


@contextmanager
def _opened(source: Source) -> Iterator[tuple[IO[bytes], NpyHeader]]:
    """The bytes behind the header of the array, and the header."""
    path = source.path
    try:
        if not zip_names(path):
            with path.open("rb") as stream:
                yield stream, read_npy_header(stream, path, "")
            return
        with zipfile.ZipFile(path) as archive, archive.open(f"{IDS}.npy") as member:
            yield member, read_npy_header(member, path, IDS)
    except KeyError as error:
        raise problem(path, "", f"holds no array {IDS}") from error
    except OSError as error:
        raise problem(path, "", f"cannot be read: {error.strerror or error}") from error
    except DAMAGED as error:
        said = str(error)
        raise (
            error if said.startswith(str(path)) else problem(path, IDS, f"damaged: {shortened(said)}")
        ) from error


def _checked_shape(header: NpyHeader, source: Source) -> tuple[int, int]:
    if len(header.shape) != 3 or min(header.shape) < 1 or header.dtype.kind not in "iu" or header.fortran:
        raise problem(
            source.path,
            IDS,
            f"{header.dtype} of shape {header.shape} must be whole numbers [tokens, layers, picks]",
        )
    tokens, layers, top_k = header.shape
    if layers * top_k > _LARGEST_ROW:
        raise problem(
            source.path, IDS, f"{layers} layers of {top_k} picks are more than {_LARGEST_ROW} in all"
        )
    return tokens, top_k


def _read_block(stream: IO[bytes], header: NpyHeader, count: int, source: Source) -> np.ndarray:
    _, layers, top_k = header.shape
    wanted = count * layers * top_k * header.dtype.itemsize
    data = stream.read(wanted)
    if len(data) != wanted:
        raise problem(source.path, IDS, f"is cut short: {header.shape[0]} tokens were promised")
    return np.frombuffer(data, header.dtype).reshape(count, layers, top_k)


def _counted(ids_TLK: np.ndarray, start: int, source: Source) -> Int64Array:
    """Counts of a block, int64 [layers, experts up to the largest id]."""
    least, largest = int(ids_TLK.min()), int(ids_TLK.max())
    if least < NO_EXPERT or largest >= _LARGEST_ID:
        bad = (ids_TLK >= _LARGEST_ID) | (ids_TLK < NO_EXPERT)
        token, layer, _ = np.argwhere(bad)[0]
        raise problem(
            source.path,
            f"{IDS}, token {start + token}, layer {layer}",
            f"ids must be from -1 to {_LARGEST_ID - 1}",
        )
    layers, bins = ids_TLK.shape[1], largest + 2  # the first bin takes those that name no expert
    flat = ids_TLK.astype(np.int64) + (1 + bins * np.arange(layers)[:, None])
    counts = np.bincount(flat.ravel(), minlength=layers * bins)
    counts_LE: Int64Array = counts.reshape(layers, bins)[:, 1:]
    return counts_LE


def _trace(windows: list[Int64Array], tokens: int, top_k: int, source: Source) -> HeatTrace:
    experts = max(window_LE.shape[1] for window_LE in windows)
    if len(windows) * len(windows[0]) * experts > _LARGEST_COUNTS:
        raise problem(
            source.path, IDS, f"{len(windows)} windows of {experts} experts are more than can be held"
        )
    if experts < top_k:
        raise problem(source.path, IDS, f"tokens that pick {top_k} of {experts} experts are none")
    windows = [np.pad(window_LE, ((0, 0), (0, experts - window_LE.shape[1]))) for window_LE in windows]
    filled_L = np.zeros(len(windows[0]), bool)
    for window_LE in windows:
        filled_L |= np.any(window_LE, axis=1)
    named: NamedRows = source.name_rows(filled_L)
    header = HeatHeader(named.layer_ids, experts, top_k, kinds=ALL_KINDS, model_layers=named.model_layers)
    ends = [min(tokens, TOKENS_PER_WINDOW * (index + 1)) for index in range(len(windows))]
    made = tuple(
        HeatWindow(
            heat_KSLE=window_LE[None, None, named.rows],
            slot_load_LGS=None,
            slice_steps=(TOKENS_PER_WINDOW * index, end),
            tokens_K=np.array([end - TOKENS_PER_WINDOW * index]),
            layer_ids=named.layer_ids,
        )
        for index, (window_LE, end) in enumerate(zip(windows, ends))
    )
    note = f"{experts} experts: the largest id and one more; steps count tokens"
    return HeatTrace(header, made, (note, *named.notes))
