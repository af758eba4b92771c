"""Placements tried on what is expected: how well they would serve it, and what of that is certain."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.placement import Placement, rank_loads
from isotherm.planner.bounds import imbalance_bound
from isotherm.planner.outlook.held_out import Gain, Served, held_out_gain
from isotherm.planner.outlook.outlook import Case
from isotherm.planner.served.objective import Objective
from isotherm.topology import Topology


@dataclass(frozen=True, eq=False)
class Trial:
    """What is served now, what is expected, and what a load is.

    Where there are several cases a placement is as good as its worst. Each case is served with the best
    shares for it, since shares follow traffic from window to window, and by the load that its kind of tokens
    makes (``by_kind``), if it is of one kind alone.
    """

    topology: Topology
    placement: Placement
    shares: FloatArray
    objective: Objective
    by_kind: tuple[Objective, ...]
    cases: tuple[Case, ...]

    @cached_property
    def _found(self) -> dict[tuple[str, Placement], FloatArray]:
        return {}

    def objective_of(self, case: Case) -> Objective:
        return self.objective if case.kind is None else self.by_kind[case.kind]

    def loads(
        self,
        heat_LE: FloatArray,
        placement: Placement,
        shares_LP: FloatArray | None = None,
        objective: Objective | None = None,
    ) -> FloatArray:
        """What each rank would carry, float64 [layers, ranks]; with the best shares where none are given."""
        objective = objective or self.objective
        if shares_LP is None:
            shares_LP = objective.shares(heat_LE, placement)
        return rank_loads(heat_LE, placement, objective.units(placement, shares_LP), self.topology)

    def imbalance(
        self,
        heat_LE: FloatArray,
        placement: Placement,
        shares_LP: FloatArray | None = None,
        objective: Objective | None = None,
    ) -> float:
        """The loads of the hottest ranks over the means, summed over layers. The means are those of experts
        on one replica each: where splitting makes work, that is no part of them."""
        objective = objective or self.objective
        peak = float(self.loads(heat_LE, placement, shares_LP, objective).max(axis=1).sum())
        mean = float(objective.weights(heat_LE).sum()) / self.topology.ranks
        return peak / mean if mean > 0 else 1.0

    def best_shares(self, case: Case, placement: Placement) -> FloatArray:
        """The shares that serve all of a case's heat best, float64 [layers, slots]; found once."""
        key = (case.name, placement)
        if key not in self._found:
            self._found[key] = self.objective_of(case).shares(case.heat_LE, placement)
        return self._found[key]

    def case_imbalance(self, case: Case, placement: Placement, shares_LP: FloatArray | None = None) -> float:
        """The imbalance of a case, by the load of its kind; with its best shares where none are given."""
        shares_LP = self.best_shares(case, placement) if shares_LP is None else shares_LP
        return self.imbalance(case.heat_LE, placement, shares_LP, self.objective_of(case))

    @cached_property
    def as_is(self) -> float:
        """The imbalance of the forecast as it is served now."""
        return self.imbalance(self.cases[0].heat_LE, self.placement, self.shares)

    @cached_property
    def level(self) -> float:
        """The worst imbalance of all cases as they are served now."""
        others = [self.case_imbalance(case, self.placement, self.shares) for case in self.cases[1:]]
        return max([self.as_is, *others])

    @cached_property
    def new_shares(self) -> FloatArray:
        """The best shares for the forecast while weights stay, float64 [layers, slots]."""
        return self.best_shares(self.cases[0], self.placement)

    @cached_property
    def reshared(self) -> float:
        """The imbalance of the forecast with them."""
        return self.case_imbalance(self.cases[0], self.placement)

    @cached_property
    def by_shares(self) -> float:
        """The worst imbalance of all cases while weights stay, each with its best shares."""
        others = [self.case_imbalance(case, self.placement) for case in self.cases[1:]]
        return max([self.reshared, *others])

    def left_to_moves(self, max_imbalance: float) -> float:
        """What moves can take off the forecast's imbalance at most, where only layers above
        ``max_imbalance`` are changed."""
        heat_LE = self.cases[0].heat_LE
        peak_L = self.loads(heat_LE, self.placement, self.new_shares).max(axis=1)
        weight_LE = self.objective.weights(heat_LE)
        mean_L = weight_LE.sum(axis=1) / self.topology.ranks
        least_L = imbalance_bound(weight_LE, self.topology) * mean_L
        above_L = np.where(peak_L > max_imbalance * mean_L, np.maximum(peak_L - least_L, 0.0), 0.0)
        return float(above_L.sum() / mean_L.sum()) if mean_L.any() else 0.0

    def worst(self, placement: Placement) -> float:
        """The worst imbalance of all cases, each with its best shares."""
        return max(self.case_imbalance(case, placement) for case in self.cases)

    def share_gain(self) -> Gain:
        """What new shares gain on the newer half of the forecast, found on its older half."""
        case = self.cases[0]
        in_force = Served(self.placement, self.objective.units(self.placement, self.shares))
        return self._gain(case, in_force, self._fitted_now[0])

    def move_gain(self, placement: Placement) -> Gain:
        """What a placement found on the older halves gains on the newer ones over the present one, both with
        shares found on the older: in the worst case of each, with the largest error of all."""
        gains = [
            self._gain(case, old, self._fitted(placement, case))
            for case, old in zip(self.cases, self._fitted_now, strict=True)
        ]
        worst = max(gain.old for gain in gains), max(gain.new for gain in gains)
        return Gain(*worst, max(gain.error for gain in gains))

    def layer_gains(self, placement: Placement) -> FloatArray:
        """What each layer adds to the gain in imbalance of the case served worst now, float64 [layers]."""
        worst = max(self.cases, key=lambda case: self.case_imbalance(case, self.placement))
        objective = self.objective_of(worst)
        before, after = (
            self.loads(worst.heat_LE, each, self.best_shares(worst, each), objective).max(axis=1)
            for each in (self.placement, placement)
        )
        mean = float(objective.weights(worst.heat_LE).sum()) / self.topology.ranks
        return np.asarray((before - after) / mean)

    @cached_property
    def _fitted_now(self) -> tuple[Served, ...]:
        """The present placement with the shares found on the older half of each case."""
        return tuple(self._fitted(self.placement, case) for case in self.cases)

    def _gain(self, case: Case, old: Served, new: Served) -> Gain:
        weight_LE = self.objective_of(case).weights(np.ones_like(case.newer_LE))
        return held_out_gain(case.newer_LE, case.scatter, old, new, self.topology, weight_LE)

    def _fitted(self, placement: Placement, case: Case) -> Served:
        objective = self.objective_of(case)
        shares_LP = objective.shares(case.older_LE, placement)
        return Served(placement, objective.units(placement, shares_LP))
