"""How a rank's tables are made of a ledger: which part of the planned shares is its own to send."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isotherm import planner
from isotherm.arrays import FloatArray
from isotherm.config import Split
from isotherm.mover import Ledger
from isotherm.placement import rank_loads
from isotherm.router import Dispatch, RoutingTables, near_split
from isotherm.topology import MoEShape, Topology
from isotherm.window import HeatWindow


@dataclass(frozen=True)
class TableRule:
    """How tokens are split (`Config.split`), on one rank: a function of what all ranks know alike.

    Raises:
        ValueError: a split by where tokens are, where every rank maps all tokens.
    """

    shape: MoEShape
    topology: Topology
    split: Split
    dispatch: Dispatch
    rank: int

    def __post_init__(self) -> None:
        if self.split == "near" and self.dispatch == "replicated":
            raise ValueError(
                "split='near' gives each rank tables of its own, and with dispatch='replicated' all ranks "
                "map by the same: choose split='shares' or 'batch'"
            )

    def tables(self, ledger: Ledger, window: HeatWindow | None = None) -> RoutingTables:
        """The tables for what the ledger holds; ``window`` is the newest that was gathered."""
        shares_LP, others_LG = ledger.shares, None
        if self.split == "near":
            source_NLE = None if window is None else window.source_heat_NLE
            shares_LP = near_split(ledger.content, shares_LP, self.topology, self.rank, source_NLE)
        elif self.split == "batch":
            others_LG = self._others(ledger, window)
        return RoutingTables.build(ledger.content, shares_LP, self.shape.experts, others_LG)

    def _others(self, ledger: Ledger, window: HeatWindow | None) -> FloatArray:
        """What each rank receives of the other ranks for each pair of this one, [layers, ranks]: as level as
        shares can make the newest heat, since the others level their batches too; the same for every rank in
        a layer without heat; nothing where this rank maps the tokens of all."""
        ranks = self.topology.ranks
        others_LG = np.full((self.shape.layers, ranks), (ranks - 1) / ranks)
        if self.dispatch == "replicated":
            return np.zeros_like(others_LG)
        if window is None:
            return others_LG
        placement = ledger.placement
        shares_LP = planner.balanced_shares(window.heat_LE, placement, self.topology)
        load_LG = rank_loads(window.heat_LE, placement, shares_LP, self.topology)
        total_L1 = load_LG.sum(axis=1, keepdims=True)
        level_LG: FloatArray = np.divide((ranks - 1) * load_LG, total_L1, out=others_LG, where=total_L1 > 0)
        return level_LG


def tells_sources(split: Split, topology: Topology) -> bool:
    """Whether windows must tell on which node tokens are: only there near tables hang on it."""
    return split == "near" and topology.nodes > 1
