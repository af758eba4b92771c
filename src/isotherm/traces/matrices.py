"""Numbers of other systems made into windows: checked, whole, without the rows that hold nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from isotherm.arrays import BoolArray, Int64Array
from isotherm.traces.header import LARGEST_SUM, HeatHeader
from isotherm.traces.problems import problem, shortened
from isotherm.traces.sources import NamedRows, Source
from isotherm.traces.trace import HeatTrace
from isotherm.window import KINDS, HeatWindow

ALL_KINDS = ("all",)
"""The one kind of tokens of a file that does not tell prefill from decode."""

LARGEST_COUNT = 2**53
_FRACTION_DIGITS = 12
_LARGEST_EXPONENT = 300  # a power of ten that a float still holds


def trace_of(
    counts: Any,
    source: Source,
    *,
    engine: str,
    place: str,
    layer_ids: tuple[int, ...] | None = None,
    kind_T: Int64Array | None = None,
) -> HeatTrace:
    """The trace of counts [layers, experts], or [rows, layers, experts] with one row per forward pass.

    ``layer_ids``: the file names its layers, and they are all MoE layers. ``kind_T``: each row is all
    prefill, 0, or all decode, 1.

    Raises:
        ValueError: anything but finite, non-negative numbers, or no heat at all; the message names file,
            layer and expert.
    """
    counts_TLE = _checked(counts, source, place)
    used_T: BoolArray = np.any(counts_TLE, axis=(1, 2), keepdims=True)[:, 0, 0]
    notes: tuple[str, ...] = ()
    if counts_TLE.shape[0] > 1 and not used_T.all():
        notes = (f"{np.count_nonzero(~used_T)} of {len(used_T)} rows hold no heat and are left out",)
        counts_TLE = counts_TLE[used_T]
        kind_T = None if kind_T is None else kind_T[used_T]
    whole_TLE, more_notes = _whole(counts_TLE, source, place)
    if layer_ids is None:
        named = source.name_rows(np.any(whole_TLE, axis=(0, 2), keepdims=True)[0, :, 0])
    else:
        named = NamedRows(np.arange(len(layer_ids)), layer_ids, source.model_layers, ())
    try:
        header = HeatHeader(
            layer_ids=named.layer_ids,
            experts=whole_TLE.shape[2],
            top_k=source.top_k,
            kinds=ALL_KINDS if kind_T is None else KINDS,
            model_layers=named.model_layers,
            engine=engine,
        )
    except ValueError as error:
        raise problem(source.path, place, str(error)) from error
    kind_T = np.zeros(len(whole_TLE), np.int64) if kind_T is None else kind_T
    windows = _windows(whole_TLE[:, named.rows], kind_T, header, source.rows_per_window)
    return HeatTrace(header, windows, notes + more_notes + named.notes)


def numbers_of(values: Any, source: Source, place: str) -> np.ndarray:
    """``values`` as an array of numbers; lists of lists must be rectangular."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise problem(source.path, place, "rows must be of equal length") from error
    if array.dtype.kind not in "iuf":
        raise problem(source.path, place, f"must hold numbers, not {shortened(array.dtype.name)}")
    return array


def _checked(counts: Any, source: Source, place: str) -> np.ndarray:
    counts_TLE = numbers_of(counts, source, place)
    if counts_TLE.dtype == np.float16:  # to which the largest count is infinite
        counts_TLE = counts_TLE.astype(np.float32)
    if counts_TLE.ndim == 2:
        counts_TLE = counts_TLE[None]
    if counts_TLE.ndim != 3 or not counts_TLE.size:
        raise problem(
            source.path, place, f"shape {counts_TLE.shape} is neither [layers, experts] nor [rows, layers, "
            "experts], none of them 0"
        )  # fmt: skip
    bad_TLE = ~((counts_TLE >= 0) & (counts_TLE <= LARGEST_COUNT))  # NaN is neither
    if bad_TLE.any():
        row, layer, expert = np.argwhere(bad_TLE)[0]
        raise problem(
            source.path,
            f"{place}, "
            + (f"row {row}, " if len(counts_TLE) > 1 else "")
            + f"layer {layer}, expert {expert}",
            f"{counts_TLE[row, layer, expert]} must be a number from 0 to 2^53",
        )
    if float(counts_TLE.sum(dtype=np.float64)) > LARGEST_SUM:
        raise problem(source.path, place, "the counts add up to more than 2^62")
    return counts_TLE


def _whole(counts_TLE: np.ndarray, source: Source, place: str) -> tuple[Int64Array, tuple[str, ...]]:
    """Counts as int64: fractions, as of means, are scaled by a power of ten, since heat is in any unit.

    Raises:
        ValueError: nothing would be left of a layer.
    """
    if counts_TLE.dtype.kind != "f" or (counts_TLE == np.rint(counts_TLE)).all():
        return counts_TLE.astype(np.int64), ()
    exact_TLE = counts_TLE.astype(np.float64)
    exponent = _fraction_exponent(float(exact_TLE.max()), float(exact_TLE.sum()))
    whole_TLE = np.rint(exact_TLE * 10.0**exponent).astype(np.int64)
    lost_L = np.any(counts_TLE, axis=(0, 2)) & ~np.any(whole_TLE, axis=(0, 2))
    if lost_L.any():
        raise problem(
            source.path,
            f"{place}, layer {np.flatnonzero(lost_L)[0]}",
            "its fractions are too small beside the largest count: give all layers in one unit",
        )
    if not exponent:
        return whole_TLE, ("fractions are rounded",)
    return whole_TLE, (f"fractions: every count is multiplied by 10^{exponent}",)


def _fraction_exponent(largest: float, total: float) -> int:
    """How many digits of fractions are kept: those that leave the sum of all counts in range."""
    if not largest:
        return 0  # of numbers too small for 64 bits nothing is left
    wanted = _FRACTION_DIGITS - math.ceil(math.log10(largest))
    room = math.floor(math.log10(LARGEST_SUM) - math.log10(total))
    return max(0, min(wanted, room, _LARGEST_EXPONENT))


def _windows(
    counts_TLE: Int64Array, kind_T: Int64Array, header: HeatHeader, rows_per_window: int
) -> tuple[HeatWindow, ...]:
    spans = [slice(start, start + rows_per_window) for start in range(0, len(counts_TLE), rows_per_window)]
    return tuple(_window(counts_TLE[span], kind_T[span], span.start, header) for span in spans)


def _window(part_TLE: Int64Array, kind_T: Int64Array, start: int, header: HeatHeader) -> HeatWindow:
    heat_KLE = np.stack([part_TLE[kind_T == kind].sum(axis=0) for kind in range(len(header.kinds))])
    tokens_K = heat_KLE.sum(axis=2).max(axis=1) // header.top_k if header.top_k else np.zeros(len(heat_KLE))
    return HeatWindow(
        heat_KSLE=heat_KLE[:, None],
        slot_load_LGS=None,
        slice_steps=(start, start + len(part_TLE)),
        tokens_K=tokens_K.astype(np.int64),
        layer_ids=header.layer_ids,
    )
