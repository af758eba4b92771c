"""Which experts each token picked: ids in numpy's files, counted block by block, however large the file."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, overload

import numpy as np

from isotherm.arrays import Int32Array, Int64Array
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
_LARGEST_COUNTS = 2**27  # numbers in all windows, half a GiB


def read_token_ids(source: Source) -> HeatTrace:
    """Ids [tokens, layers, picks], integers, -1 for none: the array ``experts`` of an ``.npz``, or an
    ``.npy``. ``TOKENS_PER_WINDOW`` tokens make a window, whose steps count tokens.

    Raises:
        ValueError: the array is another one, or an id is no expert; the message names token and layer.
    """
    blocks: list[Int32Array] = []
    with _opened(source) as (stream, header):
        tokens, top_k = _checked_shape(header, source)
        for start in range(0, tokens, TOKENS_PER_WINDOW):
            count = min(TOKENS_PER_WINDOW, tokens - start)
            block = _read_block(stream, header, count, source)
            blocks.append(_counted(block, start, source))
    return _trace(blocks, tokens, top_k, source)


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


def _counted(ids_TLK: np.ndarray, start: int, source: Source) -> Int32Array:
    """Counts of a block, int32 [layers, experts up to the largest id]."""
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
    return counts.reshape(layers, bins)[:, 1:].astype(np.int32)


def _trace(blocks: list[Int32Array], tokens: int, top_k: int, source: Source) -> HeatTrace:
    experts = max(block_LE.shape[1] for block_LE in blocks)
    if len(blocks) * len(blocks[0]) * experts > _LARGEST_COUNTS:
        raise problem(
            source.path, IDS, f"{len(blocks)} windows of {experts} experts are more than can be held"
        )
    if experts < top_k:
        raise problem(source.path, IDS, f"tokens that pick {top_k} of {experts} experts are none")
    filled_L = np.zeros(len(blocks[0]), bool)
    for block_LE in blocks:
        filled_L |= np.any(block_LE, axis=1)
    named: NamedRows = source.name_rows(filled_L)
    header = HeatHeader(named.layer_ids, experts, top_k, kinds=ALL_KINDS, model_layers=named.model_layers)
    note = f"{experts} experts: the largest id and one more; steps count tokens"
    return HeatTrace(header, CountedWindows(blocks, named.rows, tokens, header), (note, *named.notes))


@dataclass(frozen=True, eq=False)
class CountedWindows(Sequence[HeatWindow]):
    """Windows made when they are asked for: a window's counts in 64 bits take twice and more what is kept.

    Attributes:
        blocks: int32 [layers, experts up to the largest id in it], one for each window.
        rows: those of the layers that have heat. tokens: in all windows.
    """

    blocks: list[Int32Array]
    rows: Int64Array
    tokens: int
    header: HeatHeader

    def __len__(self) -> int:
        return len(self.blocks)

    @overload
    def __getitem__(self, index: int) -> HeatWindow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[HeatWindow]: ...
    def __getitem__(self, index: int | slice) -> HeatWindow | Sequence[HeatWindow]:
        numbers = range(len(self))[index]
        return self._window(numbers) if isinstance(numbers, int) else [self._window(n) for n in numbers]

    def _window(self, number: int) -> HeatWindow:
        block_LE = self.blocks[number][self.rows]
        heat_LE = np.zeros((len(self.rows), self.header.experts), np.int64)
        heat_LE[:, : block_LE.shape[1]] = block_LE
        start = TOKENS_PER_WINDOW * number
        end = min(self.tokens, start + TOKENS_PER_WINDOW)
        return HeatWindow(
            heat_KSLE=heat_LE[None, None],
            slot_load_LGS=None,
            slice_steps=(start, end),
            tokens_K=np.array([end - start]),
            layer_ids=self.header.layer_ids,
        )
