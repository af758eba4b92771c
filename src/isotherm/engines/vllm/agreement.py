"""Whether every rank of vLLM made the same plan, and which of them is the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from isotherm.placement import digest

if TYPE_CHECKING:
    import numpy as np
    import torch.distributed as dist

Agree: TypeAlias = "Callable[[np.ndarray | None], bool]"
"""Told this rank's plan, or None where it has none; the same answer on each rank."""

NO_PLAN = -1


def agree_over_ranks(goal_LP: np.ndarray | None) -> bool:
    """Whether all ranks have the plan ``goal_LP``: one small reduction over the CPU group that vLLM keeps for
    balancing, which its ranks are about to use for the plan anyway. Ranks that are about to leave plan too.

    Where there is no such group (one process), this rank's own plan decides.
    """
    group = getattr(_eplb_coordinator(), "cpu_group", None)
    if group is None:
        return goal_LP is not None
    return same_on_all(goal_LP, group)


def same_on_all(goal_LP: np.ndarray | None, group: dist.ProcessGroup) -> bool:
    """Whether the plan is there and the same on all ranks of a group over CPU memory."""
    import torch
    import torch.distributed as dist

    own = NO_PLAN if goal_LP is None else digest(goal_LP.tobytes())
    ends = torch.tensor([own, -own])
    dist.all_reduce(ends, op=dist.ReduceOp.MIN, group=group)
    lowest, highest = int(ends[0]), -int(ends[1])
    return lowest == highest != NO_PLAN


def is_first_rank() -> bool:
    """Whether this process is the first of all ranks, or the only one. Under elastic expert parallelism each
    engine is a world of its own, and under pipeline parallelism each stage balances by itself."""
    import torch.distributed as dist

    is_first = not dist.is_initialized() or dist.get_rank() == 0
    return is_first and getattr(_eplb_coordinator(), "rank_in_group", 0) == 0


def _eplb_coordinator() -> Any:
    """vLLM's ranks of balancing; None where there is one process."""
    from vllm.distributed import parallel_state

    return getattr(parallel_state, "_EPLB", None)
