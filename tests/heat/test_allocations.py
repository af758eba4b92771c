"""Once running, nothing is allocated: not by a step, not by a snapshot, not by a gather."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from heat_ranks import SHAPE, beat_all, make_ranks
from isotherm import HeatCollector, Placement, Topology
from isotherm.testing.schedules import Seeded
from isotherm.testing.simulated import Simulation

SLOTS = 4


class NewStorages(TorchDispatchMode):
    """Counts the tensors with memory of their own that operations of this thread return."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        out = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.operations.append(str(function))
        return out


def test_the_mode_sees_an_allocation():
    with NewStorages() as new:
        torch.zeros(3).add_(1)
        torch.ones(3)[1:].view(2)
    assert new.operations == ["aten.zeros.default", "aten.ones.default"]


@pytest.mark.parametrize("source", ["ids", "received"])
def test_steps_on_the_cpu_make_no_tensor(source):
    (rank,) = make_ranks(1, slots_per_rank=SLOTS, source=source)
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, SHAPE.experts, (5, SHAPE.top_k)))
    counts = torch.ones(SLOTS, dtype=torch.int64)
    with torch.inference_mode(), NewStorages() as new:
        for _ in range(6):
            for layer in range(SHAPE.layers):
                if source == "ids":
                    rank.collector.count_ids(layer, ids, num_decode=2)
                else:
                    rank.collector.count(layer, counts, borrowed=layer == 0, cumulative=layer == 1)
            rank.collector.end_step(num_tokens=5)
            rank.land()
            beat_all([rank])
    assert len(rank.windows) == 3
    assert new.operations == []
    rank.close()


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("borrowed", [True, False])
def test_steps_on_a_device_allocate_nothing(on_device, borrowed):
    """Counts, snapshots, gathers and changes of content; the engine's own tensors are made beforehand."""
    with torch.inference_mode(), Simulation(Seeded(5)) as simulation:
        group = simulation.collective_group(1, lambda call, peer, mine: mine) if on_device else None
        placement = Placement(np.tile(np.arange(SLOTS, dtype=np.int32), (SHAPE.layers, 1)), SHAPE.experts)
        collector = HeatCollector(
            SHAPE,
            Topology(ranks=1, slots_per_rank=SLOTS),
            None,
            source="received",
            window_steps=2,
            backend=simulation.backend,
            device_group=group,
        )
        counts_S = simulation.keep(torch.ones(SLOTS, dtype=torch.int64, device=simulation.device))
        made = []
        for _ in range(4):
            before = simulation.allocations
            for layer in range(SHAPE.layers):
                collector.count(layer, counts_S, borrowed=borrowed)
            collector.end_step(num_tokens=4)
            simulation.finish()
            collector.load_placement(placement)
            made.append(simulation.allocations - before)
        collector.close()
    assert made == [0, 0, 0, 0]
