"""What a change gains on heat that it was not planned on, and how much of that may be chance."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.placement import Placement, expert_sums, rank_loads
from isotherm.topology import Topology


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


def held_out_gain(
    heat_LE: FloatArray,
    scatter: float,
    old: Served,
    new: Served,
    topology: Topology,
    weight_LE: FloatArray | None = None,
) -> Gain:
    """The gain of ``new`` over ``old`` on ``heat_LE``, whose numbers scatter with ``scatter`` times their
    mean.

    The error follows from how both imbalances depend on each expert's heat (the delta method): where both
    serve an expert alike its scatter cancels. Which rank is hottest is taken as given. ``weight_LE``: what a
    token adds to the load of an expert's only replica, whose mean over ranks is 1; None: 1 everywhere.
    """
    weight_LE = np.ones_like(heat_LE) if weight_LE is None else weight_LE
    mean = float((heat_LE * weight_LE).sum()) / topology.ranks
    loads = [rank_loads(heat_LE, *served, topology) for served in (old, new)]
    before, after = (float(load_LG.max(axis=1).sum()) / mean for load_LG in loads)
    slope_LE = np.asarray((after - before) / topology.ranks * weight_LE)
    for sign, served, load_LG in zip((1, -1), (old, new), loads, strict=True):
        hottest_L1 = load_LG.argmax(axis=1)[:, None]
        on_hottest_LP = np.where(topology.slot_to_rank_P == hottest_L1, served.units_LP, 0.0)
        slope_LE += sign * expert_sums(served.placement, on_hottest_LP)
    variance = scatter * float((heat_LE * slope_LE**2).sum()) / mean**2
    return Gain(before, after, float(np.sqrt(variance)))
