"""What a running balancer or collector gathers, recorded as it comes."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from types import TracebackType

from isotherm.placement import Placement
from isotherm.topology import MoEShape, Topology
from isotherm.traces.header import HeatHeader
from isotherm.traces.recorder import HeatWriter
from isotherm.window import HeatWindow

logger = logging.getLogger("isotherm")


class HeatRecorder:
    """Appends each window that it is called with to a heat file, and never raises.

    A window that cannot be written, as on a full disk, is lost and counted; the first of them is told in the
    log, and the next window is tried again. So a recording can end, but not the engine's balancing. Windows
    come from one thread, that of the heartbeat; ``close`` may be called from any.
    """

    def __init__(self, writer: HeatWriter, placement_now: Callable[[], Placement] | None) -> None:
        self._writer, self._placement_now = writer, placement_now
        self._lock = threading.Lock()
        self._placement: Placement | None = None
        self._closed = False
        self._lost = 0

    @property
    def lost(self) -> int:
        """Windows that could not be written."""
        return self._lost

    def __call__(self, window: HeatWindow) -> None:
        with self._lock:
            if self._closed:
                return
            try:
                self._append(window)
            except (OSError, ValueError) as error:
                if not self._lost:
                    logger.warning(
                        "isotherm: a window of heat was not recorded, others may follow: %s", error
                    )
                self._lost += 1

    def _append(self, window: HeatWindow) -> None:
        placement = None if self._placement_now is None else self._placement_now()
        if placement is not None and placement != self._placement:
            self._writer.set_placement(placement)
            self._placement = placement
        self._writer.append(window, unix_seconds=time.time())

    def close(self) -> None:
        """Ends the recording; windows that still come are left out. A second call does nothing."""
        with self._lock:
            self._closed = True
            self._writer.close()

    def __enter__(self) -> HeatRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def record_to(
    path: str | os.PathLike[str],
    shape: MoEShape,
    topology: Topology,
    *,
    placement: Callable[[], Placement] | None = None,
    model: str = "",
    engine: str = "",
    append: bool = False,
) -> HeatRecorder:
    """A recorder of what a balancer or a collector of this shape and topology gathers::

        balancer.on_window(
            record_to("decode.heat", shape, topology, placement=lambda: balancer.placement)
        )

    Windows are the same on every rank, so one rank records. Each is whole in the file before the next comes:
    a process that is killed loses at most the one that it was writing. With it goes when it came.

    Args:
        path: the heat file; its folder must exist.
        placement: asked with each window what slots hold then; written before the window where it changed.
        model, engine: names, for people.
        append: go on behind the last complete window of a file that is there.

    Raises:
        ValueError: the file cannot be opened, is there already, or was recorded on another model.
    """
    header = HeatHeader.of(shape, topology, model=model, engine=engine)
    return HeatRecorder(HeatWriter(path, header, append=append), placement)
