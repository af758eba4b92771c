"""What vLLM hands to its balancing policy, kept in a heat file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from isotherm.placement import Placement
from isotherm.topology import Topology
from isotherm.traces import HeatHeader, HeatRecorder, HeatWriter
from isotherm.window import HeatWindow

logger = logging.getLogger("isotherm")

KINDS = ("all",)
"""vLLM counts prefill and decode together."""


class HandedWindows:
    """Appends each load that vLLM hands over to a heat file, from the first rank.

    vLLM says neither how many steps a load spans nor how many tokens, so that windows are numbered in the
    place of steps and have no tokens; its loads are those that slots computed, and where every rank sees all
    tokens each counts once per rank. Loads that are all equal are left out: no traffic made them. A file that
    cannot be written costs the recording alone, with a line in the log.

    Args:
        path: the heat file; one that is there is gone on with.
        is_first: whether this rank records, asked at the first load.
    """

    def __init__(self, path: Path, is_first: Callable[[], bool]) -> None:
        self._path, self._is_first = path, is_first
        self._recorder: HeatRecorder | None = None
        self._held: Placement | None = None
        self._count = 0
        self._records = True

    def keep(self, load_LE: np.ndarray, topology: Topology, held_LP: np.ndarray | None) -> None:
        """Appends the load [layers, experts] of slots that held ``held_LP``; never raises what the file
        causes."""
        if not self._records or (load_LE == load_LE.flat[0]).all():
            return
        self._held = _placement_of(held_LP, load_LE.shape[1]) or self._held
        if self._recorder is None and not self._open(load_LE.shape, topology):
            self._records = False
            return
        assert self._recorder is not None
        self._recorder(_window_of(load_LE, self._count))
        self._count += 1

    def close(self) -> None:
        """Ends the recording. A second call does nothing."""
        if self._recorder is not None:
            self._recorder.close()
        self._records = False

    def _open(self, shape_LE: tuple[int, ...], topology: Topology) -> bool:
        if not self._is_first():
            return False
        layers, experts = shape_LE
        header = HeatHeader(tuple(range(layers)), experts, kinds=KINDS, topology=topology, engine="vllm")
        try:
            writer = HeatWriter(self._path, header, append=True)
        except (OSError, ValueError) as error:
            logger.warning("isotherm: what vLLM hands over is not recorded: %s", error)
            return False
        self._recorder = HeatRecorder(writer, None if self._held is None else self._placement_now)
        logger.info("isotherm: what vLLM hands to its policy is recorded in %s", self._path)
        return True

    def _placement_now(self) -> Placement:
        assert self._held is not None
        return self._held


def _placement_of(held_LP: np.ndarray | None, experts: int) -> Placement | None:
    if held_LP is None:
        return None
    try:
        return Placement(held_LP, experts)
    except ValueError:  # ranks that leave took an expert's only slot with them
        return None


def _window_of(load_LE: np.ndarray, count: int) -> HeatWindow:
    load_LE = np.asarray(load_LE)
    if load_LE.dtype.kind not in "iu":
        load_LE = np.rint(load_LE)
    layers = load_LE.shape[0]
    return HeatWindow(
        heat_KSLE=load_LE.astype(np.int64)[None, None],
        slot_load_LGS=None,
        slice_steps=(count, count + 1),
        tokens_K=np.zeros(1, np.int64),
        layer_ids=tuple(range(layers)),
    )
