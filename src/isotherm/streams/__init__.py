"""Streams: work in order, events between streams, and the meter that shows that main never waits.

``backend_for(device)`` is the only place that looks at the kind of a device. Importing this package
does not import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isotherm.streams.api import Backend, Event, Stream
from isotherm.streams.completion import Completion
from isotherm.streams.handoff import Handoff
from isotherm.streams.home import Home
from isotherm.streams.waits import count_wait, forward_path, forward_waits

if TYPE_CHECKING:
    import torch

__all__ = [
    "Backend",
    "Completion",
    "Event",
    "Handoff",
    "Home",
    "Stream",
    "backend_for",
    "count_wait",
    "forward_path",
    "forward_waits",
]


def backend_for(device: torch.device | str) -> Backend:
    """The backend of a device: worker threads for the CPU, the device's own streams for every
    accelerator that torch knows. A device without an index is the current one of its kind.

    Raises:
        ValueError: torch has no streams for this device, or does not see it here.
    """
    import torch

    device = torch.device(device)
    if device.type == "cpu":
        from isotherm.streams.host import HostBackend

        return HostBackend()
    if device.type == "mps":
        raise ValueError("device='mps' has no streams that order copies and kernels: choose device='cpu'")
    from isotherm.streams.accelerator import AcceleratorBackend

    return AcceleratorBackend(device)
