"""The cluster and the model, as numbers: ranks, nodes, slots; layers, experts, top_k."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from isotherm.arrays import Int64Array


@dataclass(frozen=True)
class Topology:
    """The expert-parallel group: ``ranks`` processes on ``nodes`` machines, each with
    ``slots_per_rank`` places for an expert's weights in every MoE layer.

    Slot ``p`` lives on rank ``p // slots_per_rank``, rank ``g`` on node ``g // ranks_per_node``.

    Raises:
        ValueError: a number below 1, or ranks that do not divide over the nodes.
    """

    ranks: int
    slots_per_rank: int
    nodes: int = 1

    def __post_init__(self) -> None:
        for name in ("ranks", "slots_per_rank", "nodes"):
            _check_positive(name, getattr(self, name))
        if self.ranks % self.nodes:
            raise ValueError(
                f"ranks={self.ranks} do not divide over nodes={self.nodes}: every node must hold "
                f"the same number of ranks; choose nodes that divide {self.ranks}"
            )

    @classmethod
    def for_model(cls, *, experts: int, redundant: int, ranks: int, nodes: int = 1) -> Topology:
        """The topology that holds ``experts`` plus ``redundant`` slots over ``ranks``.

        Raises:
            ValueError: the slots do not divide over the ranks; the message names the nearest
                numbers of redundant slots that do.
        """
        for name, value in (("experts", experts), ("ranks", ranks)):
            _check_positive(name, value)
        if redundant < 0:
            raise ValueError(f"redundant={redundant} is negative: give 0 or more slots")
        slots = experts + redundant
        if slots % ranks:
            above = redundant + ranks - slots % ranks
            below = redundant - slots % ranks
            choices = f"{below} or {above}" if below >= 0 else f"{above}"
            raise ValueError(
                f"experts={experts} + redundant={redundant} = {slots} slots do not divide over "
                f"ranks={ranks}: choose redundant={choices}"
            )
        return cls(ranks=ranks, nodes=nodes, slots_per_rank=slots // ranks)

    @property
    def slots(self) -> int:
        """Slots per layer over all ranks, ``P``."""
        return self.ranks * self.slots_per_rank

    @property
    def ranks_per_node(self) -> int:
        return self.ranks // self.nodes

    @property
    def slot_to_rank_P(self) -> Int64Array:
        """The rank that each slot lives on, int64 [slots]."""
        return np.arange(self.slots, dtype=np.int64) // self.slots_per_rank

    def rank_of(self, slot: int) -> int:
        return slot // self.slots_per_rank

    def check_holds(self, experts: int) -> None:
        """Raises ValueError when there are fewer slots than ``experts``."""
        if self.slots < experts:
            need = -(-experts // self.ranks)
            raise ValueError(
                f"{self.ranks} ranks x {self.slots_per_rank} slots = {self.slots} slots hold fewer "
                f"than experts={experts}: every expert needs a slot; give at least "
                f"slots_per_rank={need}"
            )


@dataclass(frozen=True)
class MoEShape:
    """The model's MoE layers: ``layers`` of ``experts``, of which each token picks ``top_k``.

    ``layer_ids`` are the model's own layer numbers, ascending; None numbers them 0, 1, ...

    Raises:
        ValueError: a number below 1, ``top_k`` above ``experts``, or ``layer_ids`` of another
            length or out of order.
    """

    layers: int
    experts: int
    top_k: int
    layer_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("layers", "experts", "top_k"):
            _check_positive(name, getattr(self, name))
        if self.top_k > self.experts:
            raise ValueError(
                f"top_k={self.top_k} exceeds experts={self.experts}: a token picks each expert once"
            )
        ids = tuple(range(self.layers)) if self.layer_ids is None else tuple(self.layer_ids)
        if len(ids) != self.layers or any(a >= b for a, b in pairwise(ids)):
            raise ValueError(
                f"layer_ids={ids} must be {self.layers} ascending layer numbers, one for each layer"
            )
        object.__setattr__(self, "layer_ids", ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The model's own layer numbers, never None."""
        assert self.layer_ids is not None
        return self.layer_ids


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value} is below 1: give a positive number")
