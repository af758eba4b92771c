"""Arms of an experiment that take turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch.distributed as dist

from isotherm.arrays import FloatArray
from isotherm.bench.arms import Arm


def take_turns(
    arms: Sequence[Arm], turns: int, measure: Callable[[Arm], Sequence[float]]
) -> dict[str, FloatArray]:
    """What ``measure`` found for each arm, [turns, figures], averaged over the ranks; A B C, then C B A. Each
    arm is prepared and the ranks meet before it is measured, and afterwards what is under way is awaited.
    Called on every rank.
    """
    mine: dict[str, list[Sequence[float]]] = {arm.name: [] for arm in arms}
    for turn in range(-1, turns):  # the first warms up
        for arm in arms if turn % 2 else reversed(arms):
            arm.prepare()
            dist.barrier()
            figures = measure(arm)
            arm.settle()
            if turn >= 0:
                mine[arm.name].append(figures)
    ranks: list[dict[str, list[Sequence[float]]]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(ranks, mine)
    return {name: np.mean([rank[name] for rank in ranks], axis=0) for name in mine}
