"""Heat files, written while an engine runs. docs/heat-file.md has the layout."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import TracebackType

import numpy as np

from isotherm.placement import Placement
from isotherm.traces.chunks import pack_chunk
from isotherm.traces.header import ON_REQUEST, HeatHeader
from isotherm.traces.planes import deflate_counts
from isotherm.traces.problems import problem
from isotherm.traces.stored import LARGEST_SLICES, ROLE, TIME, scan_layout
from isotherm.window import HeatWindow


class HeatWriter:
    """Appends windows to a heat file: ``balancer.on_window(writer.append)`` records while it runs.

    Each window is whole in the file when ``append`` returns, as far as the process is concerned: what ends
    the process later loses no window, and one that ends it within ``append`` loses that window alone. An
    append that fails leaves the file as it was. Calls may come from any thread.

    Args:
        path: the file; its folder must exist.
        header: the model and cluster; `HeatHeader.of(shape, topology)` for what a balancer gathers.
        placement: what slots hold when recording begins; needs a topology in the header.
        append: go on behind the last complete window of a file that is there, whose header must be equal.

    Raises:
        ValueError: the file is there and ``append`` was not asked for, it has another header, or it cannot
            be opened; the message names it.
    """

    def __init__(
        self, path: str | os.PathLike[str], header: HeatHeader, *,
        placement: Placement | None = None, append: bool = False,
    ) -> None:  # fmt: skip
        self._path, self._header = Path(path), header
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        if placement is not None:
            self._check_placement(placement)
        end = self._end_of_existing() if append and self._path.exists() else 0
        try:
            exclusive = 0 if end else os.O_EXCL
            binary = getattr(os, "O_BINARY", 0)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | exclusive | binary, 0o666)
        except FileExistsError as error:
            raise problem(self._path, "", "is there already: give another name, or append=True") from error
        except OSError as error:
            raise problem(self._path, "", f"cannot be written: {error.strerror or error}") from error
        self._end = end
        try:
            os.ftruncate(self._descriptor, end)
            if not end:
                self._write(pack_chunk({}, {ROLE: "header", "header": json.dumps(header.as_dict())}))
            if placement is not None:
                self.set_placement(placement)
        except BaseException:
            self.close()
            raise

    def append(self, window: HeatWindow, *, unix_seconds: float | None = None) -> None:
        """Writes one window. ``unix_seconds``: when it ended, in seconds since 1970, where that is known.

        Raises:
            ValueError: the window is of another model or cluster, or the writer is closed.
            OSError: the file cannot be written, as on a full disk; windows may be appended again later.
        """
        self._header.check_window(window)
        if len(window.slice_steps) > LARGEST_SLICES + 1:
            raise ValueError(f"{len(window.slice_steps) - 1} slices: a window has at most {LARGEST_SLICES}")
        arrays = {
            "slice_steps": np.array(window.slice_steps, np.int64),
            "tokens_K": window.tokens_K,
            "heat_KSLE": deflate_counts(window.heat_KSLE),
        }
        for name in ON_REQUEST:
            if (counts := getattr(window, name)) is not None:
                arrays[name] = deflate_counts(counts)
        time = {} if unix_seconds is None else {TIME: f"{unix_seconds:.3f}"}
        self._write(pack_chunk(arrays, {ROLE: "window", **time}))

    def set_placement(self, placement: Placement) -> None:
        """Says what slots hold in the windows that follow.

        Raises:
            ValueError: it does not fit the header, or the writer is closed.
            OSError: as `append`.
        """
        self._check_placement(placement)
        self._write(pack_chunk({"slot_to_expert_LP": placement.slot_to_expert}, {ROLE: "placement"}))

    def close(self) -> None:
        """Closes the file. A second call does nothing."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def __enter__(self) -> HeatWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_placement(self, placement: Placement) -> None:
        topology = self._header.topology
        if topology is None:
            raise ValueError("a placement needs a topology in the header: give topology=")
        wanted = (len(self._header.layer_ids), topology.slots)
        if placement.slot_to_expert.shape != wanted or placement.experts != self._header.experts:
            raise ValueError(
                f"a placement of {placement.slot_to_expert.shape} and {placement.experts} experts does not "
                f"fit the header's {wanted} and {self._header.experts}"
            )

    def _end_of_existing(self) -> int:
        layout = scan_layout(self._path)
        if layout.header != self._header:
            raise problem(self._path, "header", f"{layout.header} is not {self._header}: start another file")
        return layout.end

    def _write(self, chunk: bytes) -> None:
        with self._lock:
            if self._descriptor is None:
                raise ValueError(f"{self._path}: the writer is closed")
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
            left = memoryview(chunk)
            try:
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except OSError:
                os.ftruncate(self._descriptor, self._end)
                raise
            self._end += len(chunk)
