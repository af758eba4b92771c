"""What windows tell on request: heat by the node that owns the tokens, and steps in which experts had any."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.control import Link
from isotherm.heat.totals import TotalsLayout
from isotherm.status import Memory
from isotherm.topology import Topology

_INT32_MAX = 2**31 - 1
_NATS = 16.0
"""The largest exponent that is told apart from a rank that was active in every step."""
_HALF = 0.5 + 1e-6
"""Rounds up what lies between two numbers of steps, which the last bit of a logarithm is not to decide: ranks
may have different CPUs."""


class OnRequest:
    """What this rank adds to a window, and what all ranks make of it. Heartbeat thread only.

    Heat by node costs a rank 8 bytes for each node, layer and expert once a window, steps 4 for each layer
    and expert.
    """

    def __init__(self, layout: TotalsLayout, topology: Topology, rank: int, *, sources: bool) -> None:
        self._layout, self._ranks = layout, topology.ranks
        self._node = rank // topology.ranks_per_node
        shape_LE = (layout.shape.layers, layout.shape.experts)
        nodes = topology.nodes if sources else 0
        self._source_NLE = np.zeros((nodes, *shape_LE), np.int64)
        self._active_LE = np.zeros(shape_LE if layout.active else (0, 0), np.int64)
        self._wire_LE = np.zeros(self._active_LE.shape, np.int32)

    @staticmethod
    def memory(layout: TotalsLayout, topology: Topology, *, sources: bool) -> Memory:
        """Its buffers."""
        cells = layout.shape.layers * layout.shape.experts
        bytes_per_cell = 8 * topology.nodes * sources + 12 * layout.active
        return Memory(host_bytes=cells * bytes_per_cell)

    def add(self, counts_W: np.ndarray) -> None:
        """Adds what was counted between two snapshots, unsigned words as in the layout."""
        if len(self._source_NLE):
            self._source_NLE[self._node] += self._layout.heat_of(counts_W).sum(axis=0, dtype=np.int64)
        if self._active_LE.size:
            self._active_LE += self._layout.active_of(counts_W)

    def source_heat(self, link: Link) -> Int64Array | None:
        """Heat of the window by node, int64 [nodes, layers, experts], the same on every rank; None where it
        was not asked for."""
        if not len(self._source_NLE):
            return None
        link.all_reduce(self._source_NLE)
        found_NLE = self._source_NLE.copy()
        self._source_NLE[:] = 0
        return found_NLE

    def active_steps(self, steps: int, link: Link) -> Int64Array | None:
        """Of ``steps``, those in which an expert had a token on any rank, int64 [layers, experts], the same
        on every rank; None where it was not asked for.

        Exact where one rank alone had tokens for the expert. Of several, each of which knows its own steps,
        ``steps * (1 - product of the parts without a token)`` is taken: what it is on average where ranks
        choose independently. It is never less than what one rank saw, nor more than all saw together. Ranks
        send logarithms of their parts, so that what is sent does not grow with steps or ranks.
        """
        if not self._active_LE.size:
            return None
        most = _INT32_MAX // self._ranks
        without_LE = 1 - np.minimum(self._active_LE / max(steps, 1), 1)
        with np.errstate(divide="ignore"):
            nats_LE = np.minimum(-np.log(without_LE), _NATS)
        np.rint(nats_LE * (most / _NATS), out=self._wire_LE, casting="unsafe")
        self._active_LE[:] = 0
        link.all_reduce(self._wire_LE)
        with_LE = -np.expm1(self._wire_LE * (-_NATS / most))
        found_LE: Int64Array = np.floor(steps * with_LE + _HALF).astype(np.int64)
        return found_LE
