"""How many redundant slots are worth their memory, and which layers need any."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isotherm.arrays import FloatArray, Int64Array, frozen
from isotherm.placement import rank_loads
from isotherm.planner.assemble import make_plan
from isotherm.planner.request import PlanRequest, ShareRule
from isotherm.topology import Topology
from isotherm.window import ImbalanceSummary, layer_imbalance

_STEPS = (0, 1, 2, 4)
"""Slots more per rank than the experts need."""


@dataclass(frozen=True)
class AdviceRow:
    """One number of redundant slots: what a placement planned for the heat itself reaches, and its memory.

    ``layers_within`` counts the layers at or below the target; ``bytes_per_rank`` are the weights of all
    experts of a rank.
    """

    redundant: int
    slots_per_rank: int
    imbalance: ImbalanceSummary
    layers_within: int
    bytes_per_rank: int


@dataclass(frozen=True, eq=False)
class Advice:
    """Balance against memory, and what to take.

    Attributes:
        rows: from the fewest slots that hold every expert, upwards.
        redundant: the number that is advised.
        reason: in words, why.
        imbalance_XL: float64 [rows, layers]; its fall from row to row is what each layer gains.
        needed_L: int64 [layers], the fewest redundant slots of ``rows`` with which the layer is within the
            target; -1 where none of them is enough.
    """

    rows: tuple[AdviceRow, ...]
    redundant: int
    reason: str
    imbalance_XL: FloatArray
    needed_L: Int64Array

    def __post_init__(self) -> None:
        object.__setattr__(self, "imbalance_XL", frozen(self.imbalance_XL, np.float64))
        object.__setattr__(self, "needed_L", frozen(self.needed_L, np.int64))


def advise(
    heat_LE: FloatArray | Int64Array,
    ranks: int,
    *,
    bytes_per_expert: int,
    nodes: int = 1,
    shares: ShareRule = "balanced",
    target: float = 1.03,
    least_gain: float = 0.01,
    layer_ids: tuple[int, ...] | None = None,
    threads: int = 1,
) -> Advice:
    """Plans from nothing for growing numbers of redundant slots.

    Advised is the smallest number that brings the overall imbalance to ``target``; where the next larger one
    would lower it by less than ``least_gain`` before that, the number at which it stops paying. What is
    reached is for this heat, known beforehand: drift takes some of it, and redundancy helps shares to follow.

    Args:
        heat_LE: tokens, [layers, experts].
        bytes_per_expert: weights of one expert in one layer.
        layer_ids: the model's own numbers of the layers; None: 0, 1, ...

    Raises:
        ValueError: see `PlanRequest` and `Topology`; or ``bytes_per_expert`` is negative.
    """
    if bytes_per_expert < 0:
        raise ValueError(f"bytes_per_expert={bytes_per_expert} is negative: give the bytes of one expert")
    heat_LE = np.asarray(heat_LE, np.float64)
    layers, experts = heat_LE.shape
    ids = tuple(range(layers)) if layer_ids is None else layer_ids
    rows, imbalance_XL = [], []
    fewest = -(-experts // ranks)
    # A rank with a slot for every expert needs no more.
    for slots_per_rank in [fewest + more for more in _STEPS if not more or fewest + more <= experts]:
        topology = Topology(ranks, slots_per_rank, nodes)
        request = PlanRequest(heat_LE, topology, max_imbalance=1.0, shares=shares, threads=threads)
        plan = make_plan(request)
        load_LG = rank_loads(heat_LE, plan.placement, plan.shares, topology)
        imbalance_XL.append(layer_imbalance(load_LG))
        rows.append(
            AdviceRow(
                redundant=topology.slots - experts,
                slots_per_rank=topology.slots_per_rank,
                imbalance=ImbalanceSummary.of(load_LG, ids),
                layers_within=int((imbalance_XL[-1] <= target).sum()),
                bytes_per_rank=topology.slots_per_rank * layers * bytes_per_expert,
            )
        )
    chosen, reason = _choose(rows, target, least_gain)
    within_XL = np.stack(imbalance_XL) <= target
    needed_L = np.where(within_XL.any(axis=0), [rows[x].redundant for x in within_XL.argmax(axis=0)], -1)
    return Advice(tuple(rows), rows[chosen].redundant, reason, np.stack(imbalance_XL), needed_L)


def _choose(rows: list[AdviceRow], target: float, least_gain: float) -> tuple[int, str]:
    """The row to take, and why."""
    for index, row in enumerate(rows):
        reached = f"{row.redundant} redundant slots: imbalance {row.imbalance.overall:.3f}"
        if row.imbalance.overall <= target:
            fewer = "; fewer do not reach it" if index else ""
            return index, f"{reached}, within the target of {target:.3f}{fewer}"
        if index + 1 == len(rows):
            return index, f"{reached}, above the target of {target:.3f}; no larger number was tried"
        gain = row.imbalance.overall - rows[index + 1].imbalance.overall
        if gain < least_gain:
            return index, f"{reached}; {rows[index + 1].redundant} would lower it by {gain:.3f} only"
    raise AssertionError("there is a row")
