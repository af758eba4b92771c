"""What a policy is asked: heat, where it may put experts, and what that may cost."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import numpy as np

from isotherm.arrays import FloatArray, frozen
from isotherm.placement import EMPTY, Placement
from isotherm.planner.served.dispatch import Engine, rule_of
from isotherm.topology import Topology

ShareRule = Literal["balanced", "even"]
"""How an expert's tokens are split over its replicas: so that the hottest rank carries least, or
evenly, as engines do whose dispatch knows no shares."""


Dispatch = Literal["sender", "replicated"]


@dataclass(frozen=True, eq=False)
class PlanRequest:
    """A question to the planner.

    Attributes:
        heat_LE: float64 [layers, experts], tokens in any unit.
        current: what the slots hold now; None: nothing is loaded yet, and moves are free.
        max_imbalance: no layer at or below this is changed any further.
        max_moves: slots that may change, over all layers; None: any number.
        min_gain_per_move: what each move must take off its layer's hottest rank, in the unit of heat; moves
            that take less are left out by policy ``"incremental"``, whatever the target.
        shares: how the plan will be served.
        groups: expert groups that must stay on one node each (group-limited routing); 1: none.
        threads: how many threads may search layers side by side. The answer does not depend on it; inside
            an engine, whose cores are its own, leave it at 1.
        heat_SLE: float64 [slices, layers, experts], heat in parts of the time, for policies that look at how
            it varies; None: not known.
        engine: who will route by the plan, and so how it is served, and what may not be in it.
        source_heat_NLE: float64 [nodes, layers, experts], heat by the node that its tokens come from; None:
            equally many from each.
        locality_slack: balancedness that each layer may give up so that fewer pairs cross nodes, with policy
            ``"incremental"`` and shares that prefer near replicas; None: that has no say. Needs
            ``source_heat_NLE``.
        dispatch: ``"sender"`` where the rank that owns a token decides its slot, so that ranks may hold
            different tables for a while; ``"replicated"`` where every rank maps every token.
        slots_per_round: how many slots may be retired at once, over all layers.

    Raises:
        ValueError: heat that is negative, not finite or of another shape, or sizes that do not fit
            together; the message names layer, value and rule.
    """

    heat_LE: FloatArray
    topology: Topology
    current: Placement | None = None
    max_imbalance: float = 1.03
    max_moves: int | None = None
    min_gain_per_move: float = 0.0
    shares: ShareRule = "balanced"
    groups: int = 1
    threads: int = 1
    heat_SLE: FloatArray | None = None
    engine: Engine = "isotherm"
    source_heat_NLE: FloatArray | None = None
    locality_slack: float | None = None
    dispatch: Dispatch = "sender"
    slots_per_round: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "heat_LE", _checked_heat(self.heat_LE))
        if self.heat_SLE is not None:
            object.__setattr__(self, "heat_SLE", _checked_slices(self.heat_SLE, self.heat_LE.shape))
        self.topology.check_holds(self.experts)
        if self.shares not in get_args(ShareRule):
            raise ValueError(f"shares={self.shares!r} is unknown: choose 'balanced' or 'even'")
        if self.shares == "balanced" and rule_of(self.engine).split is not None:
            raise ValueError(
                f"engine={self.engine!r} splits an expert's tokens by a rule of its own: give shares='even', "
                "or leave shares out"
            )
        self._check_sources()
        self._check_locality()
        if not self.max_imbalance >= 1:
            raise ValueError(f"max_imbalance={self.max_imbalance} is below 1, the perfect balance")
        if self.max_moves is not None and self.max_moves < 0:
            raise ValueError(f"max_moves={self.max_moves} is negative: give 0 or more, or None")
        if not 0 <= self.min_gain_per_move < inf:
            raise ValueError(
                f"min_gain_per_move={self.min_gain_per_move} must be finite and not negative: give it in the "
                "unit of heat, or leave it out"
            )
        if self.groups < 1 or self.experts % self.groups:
            raise ValueError(
                f"groups={self.groups} do not divide experts={self.experts}: give the number of "
                "expert groups of the model's router"
            )
        if self.dispatch not in get_args(Dispatch):
            raise ValueError(f"dispatch={self.dispatch!r} is unknown: choose 'sender' or 'replicated'")
        if self.slots_per_round < 1:
            raise ValueError(f"slots_per_round={self.slots_per_round} is below 1: nothing could be retired")
        if self.threads < 1:
            raise ValueError(f"threads={self.threads} is below 1: give the number of cores to use")
        self._check_current()

    def _check_current(self) -> None:
        if self.current is None:
            if self.max_moves is not None:
                raise ValueError(
                    f"max_moves={self.max_moves} without a current placement has nothing to count: "
                    "give current="
                )
            return
        found, wanted = self.current.slot_to_expert.shape, (self.layers, self.topology.slots)
        if found != wanted or self.current.experts != self.experts:
            raise ValueError(
                f"current holds {self.current.experts} experts in {found} [layers, slots]; heat and "
                f"topology need {self.experts} in {wanted}"
            )
        empty = np.argwhere(self.current.slot_to_expert == EMPTY)
        if len(empty) and not rule_of(self.engine).empties:
            layer, slot = empty[0]
            raise ValueError(
                f"layer {layer}, slot {slot} of current is empty, and engine={self.engine!r} knows no empty "
                "slots: name the expert whose weights it holds"
            )

    def _check_sources(self) -> None:
        if self.source_heat_NLE is None:
            return
        wanted = (self.topology.nodes, *self.heat_LE.shape)
        if np.shape(self.source_heat_NLE) != wanted:
            raise ValueError(
                f"source_heat_NLE has shape {np.shape(self.source_heat_NLE)}: give {wanted} [nodes, layers, "
                "experts]"
            )
        heats = [_checked_heat(heat_LE) for heat_LE in self.source_heat_NLE]
        object.__setattr__(self, "source_heat_NLE", frozen(np.stack(heats), np.float64))

    def _check_locality(self) -> None:
        if self.locality_slack is None:
            return
        if not 0 <= self.locality_slack < 1:
            raise ValueError(
                f"locality_slack={self.locality_slack} is balancedness to give up: give 0 to below 1"
            )
        if self.source_heat_NLE is None:
            raise ValueError(
                f"locality_slack={self.locality_slack} without source_heat_NLE: nothing tells whence tokens "
                "come; give it, or leave locality_slack out"
            )
        if self.shares != "balanced":
            raise ValueError(
                f"locality_slack={self.locality_slack} with shares={self.shares!r}: near replicas are "
                "preferred by shares; give shares='balanced', or leave locality_slack out"
            )

    @property
    def layers(self) -> int:
        return int(self.heat_LE.shape[0])

    @property
    def experts(self) -> int:
        return int(self.heat_LE.shape[1])


def _checked_heat(heat: FloatArray) -> FloatArray:
    heat_LE = np.asarray(heat)
    if heat_LE.ndim != 2 or not heat_LE.size:
        raise ValueError(f"heat has shape {heat_LE.shape}: give [layers, experts], neither of them 0")
    if heat_LE.dtype.kind not in "iuf":
        raise ValueError(f"heat has dtype {heat_LE.dtype}: give numbers")
    bad = np.argwhere(~np.isfinite(heat_LE) | (heat_LE < 0))
    if len(bad):
        layer, expert = bad[0]
        raise ValueError(
            f"layer {layer}, expert {expert}: heat {heat_LE[layer, expert]} must be finite and not negative"
        )
    return frozen(heat_LE, np.float64)


def _checked_slices(heat: FloatArray, layer_shape: tuple[int, ...]) -> FloatArray:
    heat_SLE = np.asarray(heat)
    if heat_SLE.ndim != 3 or not len(heat_SLE) or heat_SLE.shape[1:] != layer_shape:
        raise ValueError(
            f"heat_SLE has shape {heat_SLE.shape}: give [slices, {layer_shape[0]} layers, {layer_shape[1]} "
            "experts], as many as heat_LE has, and at least one slice"
        )
    return frozen(np.stack([_checked_heat(heat_LE) for heat_LE in heat_SLE]), np.float64)
