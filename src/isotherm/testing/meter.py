"""How much of a side stream's work may run beside the engine's: what a side stream is for."""

from __future__ import annotations

from isotherm.testing.races import Detector
from isotherm.testing.schedules import MAIN


def overlap_ratio(detector: Detector, side: str, main: str = MAIN) -> float:
    """The part of the operations of stream ``side`` that are not ordered with some operation of ``main``:
    that a device may run at the same time as it. It follows from the edges alone; 0 says that every
    operation of the one waits for the other.

    Raises:
        ValueError: nothing was enqueued on ``side``.
    """
    of_side = [operation for operation in detector.operations if operation.stamp.lane.name == side]
    of_main = [operation for operation in detector.operations if operation.stamp.lane.name == main]
    if not of_side:
        raise ValueError(f"side={side!r} has no operations: give the name of a stream that was used")
    free = sum(any(not one.stamp.is_ordered(other.stamp) for other in of_main) for one in of_side)
    return free / len(of_side)
