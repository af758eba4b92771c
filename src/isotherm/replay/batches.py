"""Experts picked by single tokens, served in batches: each step a slice, so that its noise is seen."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from isotherm.arrays import BoolArray, Int64Array
from isotherm.replay.windows import whole_windows
from isotherm.traces.header import HeatHeader
from isotherm.traces.matrices import ALL_KINDS
from isotherm.traces.npy import parse_npy, read_npz, zip_names
from isotherm.traces.problems import problem, read_whole
from isotherm.traces.sources import Source
from isotherm.traces.trace import HeatTrace
from isotherm.window import HeatWindow

IDS, OFFSETS = "experts", "offsets"
_WINDOW_STEPS = 32
_LARGEST_ID = 2**14


def read_batches(source: Source, *, batch_tokens: int, window_steps: int | None = None) -> HeatTrace:
    """The ids in a file, [tokens, layers, picks], as windows of steps of ``batch_tokens`` tokens each.

    Where the file says at which tokens requests begin (``offsets``, [requests + 1]), so many requests are
    decoded side by side, a token each per step, and the next request takes the place of one that ends, as
    engines do. Else tokens are taken as they come. What does not fill a batch, or a window, is left out.
    ``window_steps`` left out: 32, or an eighth of all steps, where that is less.

    Raises:
        ValueError: the file holds no such ids, or too few of them; the message names file, place and rule.
    """
    if batch_tokens < 1 or (window_steps is not None and window_steps < 1):
        raise ValueError(f"batch_tokens={batch_tokens} and window_steps={window_steps} must not be below 1")
    ids_TLK, offsets = _read(source)
    if offsets is None:
        step_T = np.arange(len(ids_TLK)) // batch_tokens
        steps = len(ids_TLK) // batch_tokens
    else:
        step_T, steps = decode_steps(offsets, batch_tokens)
    if window_steps is None:
        window_steps = whole_windows(steps, _WINDOW_STEPS)
    if steps < window_steps:
        raise problem(
            source.path, IDS, f"{len(ids_TLK)} tokens make {steps} full batches of {batch_tokens}, less than "
            f"a window of {window_steps} steps: choose a smaller batch or window"
        )  # fmt: skip
    filled_L: BoolArray = np.any(ids_TLK >= 0, axis=(0, 2), keepdims=True)[0, :, 0]
    named = source.name_rows(filled_L)
    experts, top_k = int(ids_TLK.max()) + 1, ids_TLK.shape[2]
    if experts < top_k:
        raise problem(source.path, IDS, f"tokens that pick {top_k} of {experts} experts are none")
    header = HeatHeader(named.layer_ids, experts, top_k, kinds=ALL_KINDS, model_layers=named.model_layers)
    order_T = np.argsort(step_T, kind="stable")
    first_N = np.searchsorted(step_T[order_T], np.arange(steps + 1))
    windows = BatchWindows(ids_TLK[:, named.rows], order_T, first_N, window_steps, header)
    how = "tokens as they come" if offsets is None else f"of {len(offsets) - 1} requests, side by side"
    note = f"{steps} batches of {batch_tokens} tokens, {how}; {experts} experts: the largest id and one more"
    return HeatTrace(header, windows, (note, *named.notes))


def decode_steps(offsets: Int64Array, batch_tokens: int) -> tuple[Int64Array, int]:
    """The step in which each token is decoded, and how many steps have a full batch: so many requests at
    once, of each the next token per step, and the next request in the place of the first that ends."""
    lengths = np.diff(offsets)
    step_T = np.zeros(int(offsets[-1]), np.int64)
    free = [0] * batch_tokens
    for start, length in zip(offsets[:-1].tolist(), lengths.tolist()):
        begin = heapq.heappop(free)
        step_T[start : start + length] = np.arange(begin, begin + length)
        heapq.heappush(free, begin + length)
    return step_T, free[0]


@dataclass(frozen=True, eq=False)
class BatchWindows(Sequence[HeatWindow]):
    """Windows counted when they are asked for. The tokens of step ``n`` are
    ``ids_TLK[order_T[first_N[n] : first_N[n + 1]]]``."""

    ids_TLK: np.ndarray
    order_T: Int64Array
    first_N: Int64Array
    window_steps: int
    header: HeatHeader

    def __len__(self) -> int:
        return (len(self.first_N) - 1) // self.window_steps

    @overload
    def __getitem__(self, index: int) -> HeatWindow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[HeatWindow]: ...
    def __getitem__(self, index: int | slice) -> HeatWindow | Sequence[HeatWindow]:
        numbers = range(len(self))[index]
        return self._count(numbers) if isinstance(numbers, int) else [self._count(n) for n in numbers]

    def _count(self, number: int) -> HeatWindow:
        start = number * self.window_steps
        first_S1 = self.first_N[start : start + self.window_steps + 1]
        ids_TLK = self.ids_TLK[self.order_T[first_S1[0] : first_S1[-1]]].astype(np.int64)
        step_T = np.repeat(np.arange(self.window_steps), np.diff(first_S1))
        layers, bins = ids_TLK.shape[1], self.header.experts + 1  # the first bin takes ids of no expert
        row_TL1 = (step_T[:, None] * layers + np.arange(layers))[:, :, None]
        counts = np.bincount(
            (row_TL1 * bins + ids_TLK + 1).ravel(), minlength=self.window_steps * layers * bins
        )
        return HeatWindow(
            heat_KSLE=counts.reshape(1, self.window_steps, layers, bins)[..., 1:],
            slot_load_LGS=None,
            slice_steps=tuple(range(start, start + self.window_steps + 1)),
            tokens_K=np.array([len(ids_TLK)]),
            layer_ids=self.header.layer_ids,
        )


def _read(source: Source) -> tuple[np.ndarray, Int64Array | None]:
    """The ids, and where requests begin and end."""
    path = source.path
    arrays = read_npz(path) if zip_names(path) else {IDS: parse_npy(read_whole(path), path, IDS)}
    ids_TLK = arrays.get(IDS)
    if ids_TLK is None:
        raise problem(path, "", f"holds no array {IDS}")
    if ids_TLK.ndim != 3 or not ids_TLK.size or ids_TLK.dtype.kind not in "iu":
        raise problem(
            path,
            IDS,
            f"{ids_TLK.dtype} of shape {ids_TLK.shape} must be whole numbers [tokens, layers, picks]",
        )
    if ids_TLK.min() < -1 or ids_TLK.max() >= _LARGEST_ID:
        raise problem(path, IDS, f"ids must be from -1 to {_LARGEST_ID - 1}")
    offsets = arrays.get(OFFSETS)
    return ids_TLK, None if offsets is None else _checked_offsets(offsets, len(ids_TLK), source)


def _checked_offsets(offsets: np.ndarray, tokens: int, source: Source) -> Int64Array:
    sound = offsets.ndim == 1 and len(offsets) > 1 and offsets.dtype.kind in "iu"
    if not sound or offsets[0] != 0 or offsets[-1] != tokens or (np.diff(offsets.astype(np.int64)) < 0).any():
        raise problem(source.path, OFFSETS, f"must ascend from 0 to the {tokens} tokens, whole numbers")
    return offsets.astype(np.int64)
