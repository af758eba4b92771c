"""Windows of another length, made of the slices of those in a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.window import HeatWindow

ENOUGH = 8
"""Windows into which a short trace is cut at least, where nobody says how long they are."""


class _Slice(NamedTuple):
    """A slice of a window: its first step, the step behind it, its heat, and its part of the tokens."""

    start: int
    end: int
    heat_KLE: Int64Array
    tokens_K: Int64Array


def whole_windows(steps: int, most: int) -> int:
    """Steps in a window where nobody says how many: ``most``, or so few that `ENOUGH` fit into ``steps``."""
    return max(1, min(most, steps // ENOUGH))


def rewindowed(windows: Iterable[HeatWindow], steps: int) -> Iterator[HeatWindow]:
    """Windows of ``steps`` steps or a little more, of as many whole slices as they take.

    Steps that are missing between two windows are in none of the new ones; nor is what is left over at a gap
    or at the end. Slot loads, which hold for one placement, are left out.
    """
    held: list[_Slice] = []
    for window in windows:
        for part in _slices(window):
            if held and held[-1].end != part.start:
                held = []
            held.append(part)
            if part.end - held[0].start >= steps:
                yield _joined(held, window.layer_ids)
                held = []


def continued(windows: Iterable[HeatWindow]) -> Iterator[HeatWindow]:
    """The windows, with steps that only ascend. An engine that is started again counts from 0, and its
    windows may follow in one file: they go on at the step at which those before ended."""
    shift, end = 0, None
    for window in windows:
        if end is not None and window.start_step + shift < end:
            shift = end - window.start_step
        steps = tuple(step + shift for step in window.slice_steps)
        yield window if not shift else replace(window, slice_steps=steps)
        end = steps[-1]


def one_kind(windows: Iterable[HeatWindow], kind: int) -> Iterator[HeatWindow]:
    """The windows with the tokens of one kind alone, by its index, without slot loads."""
    for window in windows:
        yield HeatWindow(
            heat_KSLE=window.heat_KSLE[kind : kind + 1],
            slot_load_LGS=None,
            slice_steps=window.slice_steps,
            tokens_K=window.tokens_K[kind : kind + 1],
            layer_ids=window.layer_ids,
        )


def _slices(window: HeatWindow) -> Iterator[_Slice]:
    """The tokens of a window are given to its slices by their heat."""
    heat_KS = window.heat_KSLE.sum(axis=(2, 3))
    part_KS = np.cumsum(heat_KS, axis=1) / np.maximum(heat_KS.sum(axis=1, keepdims=True), 1)
    until_KS = np.rint(part_KS * window.tokens_K[:, None]).astype(np.int64)
    tokens_KS = np.diff(until_KS, axis=1, prepend=0)
    for index, (start, end) in enumerate(pairwise(window.slice_steps)):
        yield _Slice(start, end, window.heat_KSLE[:, index], tokens_KS[:, index])


def _joined(parts: list[_Slice], layer_ids: tuple[int, ...]) -> HeatWindow:
    return HeatWindow(
        heat_KSLE=np.stack([part.heat_KLE for part in parts], axis=1),
        slot_load_LGS=None,
        slice_steps=(*(part.start for part in parts), parts[-1].end),
        tokens_K=np.sum([part.tokens_K for part in parts], axis=0),
        layer_ids=layer_ids,
    )
