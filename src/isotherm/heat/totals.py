"""The running totals: added to in place, at fixed addresses, never cleared."""

from __future__ import annotations

import numpy as np
import torch

from isotherm.arrays import Int32Array, Int64Array
from isotherm.topology import MoEShape, Topology
from isotherm.window import KINDS


class Totals:
    """Counts since the start, modulo 2^32, as views of one flat int32 tensor on the device.

    ``heat_KLE`` counts tokens per kind, layer and logical expert; ``slots_LP`` tokens per layer and
    slot, all kinds. Read them as unsigned: differences of two copies are right as long as fewer than
    2^32 tokens lie between.
    """

    def __init__(self, shape: MoEShape, topology: Topology, device: torch.device) -> None:
        self._heat_shape = (len(KINDS), shape.layers, shape.experts)
        self._slots_shape = (shape.layers, topology.slots)
        self._heat_size = int(np.prod(self._heat_shape))
        size = self._heat_size + int(np.prod(self._slots_shape))
        self.flat = torch.zeros(size, dtype=torch.int32, device=device)
        self.heat_KLE = self.flat[: self._heat_size].view(self._heat_shape)
        self.slots_LP = self.flat[self._heat_size :].view(self._slots_shape)

    def split(self, flat: Int32Array | Int64Array) -> tuple[np.ndarray, np.ndarray]:
        """Views ``(heat_KLE, slots_LP)`` of an array laid out like ``flat``."""
        return (
            flat[: self._heat_size].reshape(self._heat_shape),
            flat[self._heat_size :].reshape(self._slots_shape),
        )
