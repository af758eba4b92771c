"""What a change gains on heat that it was not planned on, and how much of that may be chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.placement import Placement, expert_sums, rank_loads
from isotherm.topology import Topology
from isotherm.window import overall_imbalance


class Gain(NamedTuple):
    """The overall imbalance before and after, and the standard error of their difference."""

    old: float
    new: float
    error: float

    @property
    def value(self) -> float:
        return self.old - self.new

    def is_sure(self, least: float, confidence: float) -> bool:
        """At least ``least``, and more than ``confidence`` standard errors."""
        return self.value >= max(least, confidence * self.error)


class Served(NamedTuple):
    """A placement in use: ``units_LP`` is what a token of its expert adds to the load of each slot."""

    placement: Placement
    units_LP: FloatArray


def held_out_gain(heat_LE: FloatArray, scatter: float, old: Served, new: Served, topology: Topology) -> Gain:
    """The gain of ``new`` over ``old`` on ``heat_LE``, whose numbers scatter with ``scatter`` times their
    mean.

    The error follows from how both imbalances depend on each expert's heat (the delta method): where both
    serve an expert alike its scatter cancels. Which rank is hottest is taken as given.
    """
    slopes = [_slope(heat_LE, served, topology) for served in (old, new)]
    before, after = (overall_imbalance(rank_loads(heat_LE, *served, topology)) for served in (old, new))
    variance = scatter * float((heat_LE * (slopes[0] - slopes[1]) ** 2).sum())
    return Gain(before, after, float(np.sqrt(variance)))


def _slope(heat_LE: FloatArray, served: Served, topology: Topology) -> FloatArray:
    """How the overall imbalance grows with each expert's heat, float64 [layers, experts]."""
    load_LG = rank_loads(heat_LE, *served, topology)
    mean = float(load_LG.mean(axis=1).sum())
    hottest_L1 = load_LG.argmax(axis=1)[:, None]
    on_hottest_LP = np.where(topology.slot_to_rank_P == hottest_L1, served.units_LP, 0.0)
    peak_LE = expert_sums(served.placement, on_hottest_LP)
    mean_LE = expert_sums(served.placement, served.units_LP) / topology.ranks
    return np.asarray((peak_LE - overall_imbalance(load_LG) * mean_LE) / mean)
