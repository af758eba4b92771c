"""Attempts to plan that end in odd ways, and groups that ranks cannot talk over."""

import numpy as np
import pytest
import torch.distributed as dist

from isotherm.control import GroupLink, PlanDesk
from isotherm.streams import backend_for


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_an_attempt_that_raises_is_over_whatever_it_raises(error):
    """A desk that never heard of it would plan no more after two of them."""
    failed = []
    desk = PlanDesk(
        lambda: backend_for("cpu").side_stream("planner"),
        lambda made: None,
        announce=lambda data: None,
        on_begun=lambda: None,
        on_ended=lambda: None,
        on_failed=lambda: failed.append(1),
        poke=lambda: None,
    )

    def work():
        raise error("on purpose")

    for _ in range(3):
        desk.begin(work)
        assert desk._returned.wait(10)
        desk.act(np.array([desk.header()]), None)
        assert desk.is_free
    desk.close(10.0)
    assert failed == [1] * 3


def test_a_group_without_cpu_memory_is_refused_with_the_remedy():
    group = dist.ProcessGroup(dist.HashStore(), 0, 1)  # as one of NCCL alone: nothing of it serves a CPU
    with pytest.raises(ValueError, match=r"carries no tensors.*new_group\(backend='gloo'\)"):
        GroupLink(group)
