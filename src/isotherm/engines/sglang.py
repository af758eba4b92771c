"""A plan in the signature of SGLang's balancer, `sglang.srt.eplb.eplb_algorithms.rebalance_experts` (0.5.23).

SGLang looks that function up in its module at each rebalance, so a program that starts SGLang can put ours
in its place, in every rank's process::

    from sglang.srt.eplb import eplb_algorithms
    from isotherm.engines.sglang import rebalance_experts

    eplb_algorithms.rebalance_experts = rebalance_experts
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from isotherm.arrays import Int64Array
from isotherm.placement import Placement
from isotherm.planner import PlanRequest, make_plan
from isotherm.topology import Topology

_LOCATION = "sglang.srt.eplb.expert_location"
"""SGLang's module that knows which expert each slot holds."""
_ELASTIC = "elasticity_aware"
"""How the names of the planners begin that SGLang uses where ranks come and go."""


def rebalance_experts(
    tokens_per_expert: torch.Tensor,
    num_physical_experts: int,
    num_local_physical_experts: int,
    num_groups: int | None,
    num_nodes: int,
    algorithm: object = None,
    *,
    current: torch.Tensor | None = None,
    max_imbalance: float = 1.03,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Plans from what the slots hold, for SGLang's dispatch to the nearest replica, with few moves.

    Every rank plans for itself; the answer has the same bytes on every CPU.

    Args:
        tokens_per_expert: [steps, layers, experts], any unit and device; layers without tokens, dense ones
            too, stay as they are.
        num_physical_experts: slots over all ranks.
        num_local_physical_experts: slots of a rank.
        num_groups: not used: expert groups are not kept on their nodes.
        algorithm: SGLang's own planner. That of elastic expert parallelism is refused; others do not apply.
        num_nodes: machines, that hold equally many ranks.
        current: [layers, slots], the expert of each slot. None: what the SGLang of this process says; where
            it says nothing, or has another number of slots, the plan is made from nothing.
        max_imbalance: no layer at or below this is changed.

    Returns:
        The expert of each slot, [layers, slots]; the slots of each expert, ascending, padded with -1,
        [layers, experts, most replicas]; the number of slots of each expert, [layers, experts]. int64, in
        host memory.

    Raises:
        ValueError: tokens or sizes that do not fit together; the message names them. Elastic expert
            parallelism, whose planner knows of ranks that are gone: ours would place experts on them.
    """
    if (name := getattr(algorithm, "name", "")).startswith(_ELASTIC):
        raise ValueError(
            f"eplb_algorithm={name} plans around ranks that are gone, of which Isotherm is not told: start "
            "SGLang without elastic expert parallelism, or leave its own rebalance_experts in place"
        )
    heat_LE = tokens_per_expert.sum(dim=0).cpu().numpy()
    layers, experts = heat_LE.shape
    topology = Topology(
        ranks=num_physical_experts // num_local_physical_experts,
        slots_per_rank=num_local_physical_experts,
        nodes=num_nodes,
    )
    held = _held_now(layers, topology.slots) if current is None else current.cpu()
    request = PlanRequest(
        heat_LE=heat_LE,
        topology=topology,
        current=None if held is None else Placement(held.numpy(), experts),
        max_imbalance=1.0 if held is None else max_imbalance,
        shares="even",
        engine="sglang",
    )
    slot_to_expert_LP = make_plan(request).placement.slot_to_expert.astype(np.int64)
    slots_LEX, count_LE = _slots_of_experts(slot_to_expert_LP, experts)
    return torch.from_numpy(slot_to_expert_LP), torch.from_numpy(slots_LEX), torch.from_numpy(count_LE)


def _held_now(layers: int, slots: int) -> torch.Tensor | None:
    """What the SGLang of this process says that its slots hold; None where it says nothing that fits."""
    location: Any = sys.modules.get(_LOCATION)
    metadata = location and location.get_global_expert_location_metadata()
    if metadata is None:
        return None
    held: torch.Tensor = metadata.physical_to_logical_map_cpu
    return held if held.shape == (layers, slots) else None


def _slots_of_experts(slot_to_expert_LP: Int64Array, experts: int) -> tuple[Int64Array, Int64Array]:
    """The slots of each expert, ascending and padded with -1, and how many they are."""
    layers, slots = slot_to_expert_LP.shape
    layer_L1 = np.arange(layers)[:, None]
    count_LE = np.zeros((layers, experts), np.int64)
    np.add.at(count_LE, (layer_L1, slot_to_expert_LP), 1)
    slots_LEX = np.full((layers, experts, count_LE.max()), -1, np.int64)
    order_LP = np.argsort(slot_to_expert_LP, axis=1, kind="stable")
    expert_LP = np.take_along_axis(slot_to_expert_LP, order_LP, axis=1)
    first_LE = count_LE.cumsum(axis=1) - count_LE
    slots_LEX[layer_L1, expert_LP, np.arange(slots) - first_LE[layer_L1, expert_LP]] = order_LP
    return slots_LEX, count_LE
