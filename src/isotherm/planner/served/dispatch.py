"""How the engine that serves a plan splits an expert's tokens over its replicas, and what it cannot hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.placement import Placement
from isotherm.planner.served.dispatch_kernels import BY_RANK, EVEN, NEAREST, split_layers
from isotherm.topology import Topology

Engine: TypeAlias = Literal["isotherm", "vllm", "sglang", "vllm-ascend", "tensorrt-llm"]
"""Who will route by the plan."""


@dataclass(frozen=True)
class DispatchRule:
    """What an engine does with an expert's tokens.

    Attributes:
        split: a kernel's number of the split; None: by the plan's own shares.
        repeats: a rank may hold an expert twice.
        empties: a slot may hold no expert.
    """

    split: int | None
    repeats: bool = True
    empties: bool = False


RULES: dict[Engine, DispatchRule] = {
    "isotherm": DispatchRule(split=None, empties=True),
    # A hash of the token's place in the batch picks the replica.
    "vllm": DispatchRule(split=EVEN),
    # Each rank has one replica of each expert to send to: its own, else the first on its node, else one
    # dealt out evenly among all. The default with a placement, "static".
    "sglang": DispatchRule(split=NEAREST),
    # Rank g sends to replica g modulo their number. Its map has one entry for each rank and expert.
    "vllm-ascend": DispatchRule(split=BY_RANK, repeats=False),
    # The tokens of a rank take the replicas in turn.
    "tensorrt-llm": DispatchRule(split=EVEN),
}


def rule_of(engine: Engine) -> DispatchRule:
    """The rule of an engine.

    Raises:
        ValueError: an unknown engine.
    """
    if engine not in RULES:
        raise ValueError(f"engine={engine!r} is unknown: choose one of {', '.join(get_args(Engine))}")
    return RULES[engine]


def served_shares(placement: Placement, topology: Topology, split: int, source_LEN: FloatArray) -> FloatArray:
    """The part of its expert's tokens that each slot is sent on average, float64 [layers, slots].

    ``source_LEN`` says where the tokens of each expert come from: the part from each node, whose ranks send
    equally many (`source_parts`).
    """
    shares_LP = np.zeros(placement.slot_to_expert.shape)
    slot_expert_LP: Int64Array = placement.slot_to_expert.astype(np.int64)
    split_layers(slot_expert_LP, topology.ranks, split, source_LEN, shares_LP)
    return shares_LP


def source_parts(
    source_heat_NLE: FloatArray | Int64Array | None, shape_LE: tuple[int, ...], nodes: int
) -> FloatArray:
    """The part of each expert's tokens that comes from each node, float64 [layers, experts, nodes]: equal
    parts where nothing is known, or where the expert has no heat."""
    parts_LEN = np.full((*shape_LE, nodes), 1.0 / nodes)
    if source_heat_NLE is not None:
        heat_LEN = np.moveaxis(np.asarray(source_heat_NLE, np.float64), 0, -1)
        total_LE1 = heat_LEN.sum(axis=-1, keepdims=True)
        np.divide(heat_LEN, total_LE1, out=parts_LEN, where=total_LE1 > 0)
    return parts_LEN
