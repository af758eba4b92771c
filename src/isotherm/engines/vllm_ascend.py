"""A policy in the shape of vLLM Ascend's `EplbPolicy` (0.23.0).

vLLM Ascend's factory looks its policies up by name in its own module, so a program that starts vLLM can put
ours in the place of one, here that of type 2, before the engine is built::

    from vllm_ascend.eplb.core.policy import policy_factory
    from isotherm.engines.vllm_ascend import IsothermEplb

    policy_factory.SwiftBalanceEplb = IsothermEplb
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import ArrayLike

from isotherm.arrays import FloatArray, Int64Array
from isotherm.placement import Placement, Plan
from isotherm.planner import PlanRequest, make_plan
from isotherm.topology import Topology
from isotherm.window import layer_imbalance

logger = logging.getLogger("isotherm")


class IsothermEplb:
    """Plans from the current table, for vLLM Ascend's dispatch of one replica per rank, with few moves.

    What it needs is compiled when it is made, in the engine's process, before the planning process starts.
    It keeps no state.

    Args:
        max_imbalance: no layer at or below this is changed.
    """

    def __init__(self, max_imbalance: float = 1.03) -> None:
        self.max_imbalance = max_imbalance
        _plan(np.array([[[0, 1], [2, 0]]]), np.array([[[9.0, 1.0], [1.0, 0.0]]]), 1.0)

    def rebalance_experts(
        self, current_expert_table: torch.Tensor | ArrayLike, expert_workload: torch.Tensor | ArrayLike
    ) -> tuple[int, Int64Array, torch.Tensor]:
        """Which expert each rank is to hold in each slot.

        Experts that stay on their rank stay in their slot, and none is on a rank twice, as the worker of vLLM
        Ascend asks for. Every rank plans for itself; the answer has the same bytes on every CPU.

        Args:
            current_expert_table: integers [layers, ranks, slots], the expert of each slot.
            expert_workload: tokens that each slot received, [layers, ranks, slots], or in several stages,
                [stages, layers, ranks, slots].

        Returns:
            1 where anything changes, else 0; the layers, those first that gain most; the new table, int64
            [layers, ranks, slots]. Where no plan can be made the log says why, and the table is the current
            one: an error would end balancing for good.
        """
        table_LGS: Int64Array = torch.as_tensor(current_expert_table).numpy().astype(np.int64)
        load_LGS: FloatArray = np.maximum(torch.as_tensor(expert_workload).numpy(), 0).astype(np.float64)
        if load_LGS.ndim == 4:
            load_LGS = load_LGS.sum(axis=0)
        try:
            plan = _plan(table_LGS, load_LGS, self.max_imbalance)
        except Exception:
            logger.exception("isotherm: no plan could be made; experts stay where they are")
            return 0, np.arange(len(table_LGS)), torch.from_numpy(table_LGS)
        left_L = plan.imbalance / layer_imbalance(load_LGS.sum(axis=2))
        goal_LP = plan.placement.slot_to_expert.astype(np.int64)
        goal = torch.from_numpy(goal_LP.reshape(table_LGS.shape))
        return int(bool(plan.moves)), np.argsort(left_L, kind="stable"), goal


def _plan(table_LGS: Int64Array, load_LGS: FloatArray, max_imbalance: float) -> Plan:
    layers, ranks, slots = table_LGS.shape
    if load_LGS.shape != table_LGS.shape:
        raise ValueError(f"expert_workload has shape {load_LGS.shape}, the table {table_LGS.shape}")
    heat_LE = np.zeros((layers, int(table_LGS.max()) + 1))
    np.add.at(heat_LE, (np.arange(layers)[:, None, None], table_LGS), load_LGS)
    request = PlanRequest(
        heat_LE=heat_LE,
        topology=Topology(ranks=ranks, slots_per_rank=slots),
        current=Placement(table_LGS.reshape(layers, -1).astype(np.int32), heat_LE.shape[1]),
        max_imbalance=max_imbalance,
        shares="even",
        engine="vllm-ascend",
    )
    return make_plan(request)
