"""vLLM's own expert balancing, planned by Isotherm."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from isotherm.engines.vllm.agreement import Agree, agree_over_ranks
from isotherm.engines.vllm.handed import HandedWindows
from isotherm.engines.vllm.placing import MAX_IMBALANCE, place_experts
from isotherm.topology import Topology

if TYPE_CHECKING:
    import numpy as np
    import torch

logger = logging.getLogger("isotherm")


class EplbPlanner:
    """Answers vLLM's ``rebalance_experts``: with `place_experts` where every rank made the same plan, else
    with the policy that vLLM came with.

    What goes wrong inside never reaches the engine. The first time on a rank it is told in the log. Ranks
    compare digests of their plans before any of them uses one, since a rank that placed experts otherwise
    than the others would answer with the wrong weights.

    Args:
        fallback: the policy class that vLLM came with.
        max_imbalance: as `place_experts` takes it.
        windows: records what vLLM hands over; None: nothing is recorded.
        agree: whether all ranks have this plan; asked with None on a rank that has none.
    """

    def __init__(
        self,
        fallback: Any,
        *,
        max_imbalance: float = MAX_IMBALANCE,
        windows: HandedWindows | None = None,
        agree: Agree = agree_over_ranks,
        place: Callable[..., np.ndarray] = place_experts,
    ) -> None:
        self._fallback, self._windows = fallback, windows
        self._max_imbalance, self._agree, self._place = max_imbalance, agree, place
        self._warned = False

    def rebalance_experts(
        self,
        weight: torch.Tensor,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Which expert each slot is to hold, int64 [layers, num_replicas] on the CPU. Arguments are vLLM's:
        loads [layers, experts], what slots hold [layers, slots] with -1 for an empty one. ``num_groups`` is
        not used: groups are not kept on their nodes."""
        import torch

        try:
            goal_LP = self._plan(weight, num_replicas, num_nodes, num_ranks, old_global_expert_indices)
        except Exception as error:
            self._tell(f"{type(error).__name__}: {error}")
            goal_LP = None
        if self._all_have(goal_LP) and goal_LP is not None:
            return torch.from_numpy(goal_LP)
        answer: torch.Tensor = self._fallback.rebalance_experts(
            weight, num_replicas, num_groups, num_nodes, num_ranks, old_global_expert_indices
        )
        return answer

    def _plan(
        self,
        weight: torch.Tensor,
        num_replicas: int,
        num_nodes: int,
        num_ranks: int,
        held: torch.Tensor | None,
    ) -> np.ndarray:
        topology = _topology_of(num_replicas, num_nodes, num_ranks)
        load_LE = weight.detach().cpu().numpy()
        held_LP = None if held is None else held.detach().cpu().numpy()
        if self._windows is not None:
            self._windows.keep(load_LE, topology, held_LP)
        return self._place(load_LE, topology, held_LP, max_imbalance=self._max_imbalance)

    def _all_have(self, goal_LP: np.ndarray | None) -> bool:
        """Asked on every rank, whether it has a plan or not: the others wait for its answer."""
        try:
            agreed = self._agree(goal_LP)
        except Exception as error:
            self._tell(f"ranks could not compare their plans: {type(error).__name__}: {error}")
            return False
        if not agreed:
            self._tell("another rank made another plan, or none")
        return agreed

    def _tell(self, why: str) -> None:
        if not self._warned:
            logger.warning(
                "isotherm: vLLM's own policy plans where ours cannot; this will not be logged again: %s", why
            )
        self._warned = True

    def as_policy(self) -> type:
        """A policy class for vLLM's registry, which calls this planner."""

        def rebalance_experts(cls: type, *args: Any, **kwargs: Any) -> torch.Tensor:
            return self.rebalance_experts(*args, **kwargs)

        methods = {"rebalance_experts": classmethod(rebalance_experts), "planner": self}
        return type("IsothermEplbPolicy", (self._fallback,), methods)


def _topology_of(num_replicas: int, num_nodes: int, num_ranks: int) -> Topology:
    if num_replicas % num_ranks:
        raise ValueError(f"num_replicas={num_replicas} do not divide over num_ranks={num_ranks}")
    return Topology(ranks=num_ranks, slots_per_rank=num_replicas // num_ranks, nodes=num_nodes)
