"""Whether every rank of vLLM made the same plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from isotherm.placement import digest

if TYPE_CHECKING:
    import numpy as np
    import torch.distributed as dist

Agree: TypeAlias = "Callable[[np.ndarray | None, int], bool]"
"""Told this rank's plan, or None where it has none, and how many ranks plan; the same answer on each."""

NO_PLAN = -1


def agree_over_ranks(goal_LP: np.ndarray | None, num_ranks: int) -> bool:
    """Whether all ranks have the plan ``goal_LP``: one small reduction over the CPU group that vLLM keeps for
    balancing, which its ranks are about to use for the plan anyway.

    Where there is no such group, or it has other ranks than plan (one process, or ranks that join or leave),
    this rank's own plan decides.
    """
    group = _eplb_cpu_group()
    if group is None or group.size() != num_ranks:
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


def _eplb_cpu_group() -> dist.ProcessGroup | None:
    import torch.distributed as dist
    from vllm.distributed import parallel_state

    coordinator = getattr(parallel_state, "_EPLB", None)
    group = getattr(coordinator, "cpu_group", None)
    return group if isinstance(group, dist.ProcessGroup) else None
