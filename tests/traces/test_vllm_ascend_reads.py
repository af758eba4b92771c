"""vLLM Ascend's own reader of expert maps, and how it sends by them, on files that we write.

`make test-readers` installs the package, without what it needs: the file that is asked is loaded alone.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from peers import load, stand_in

import isotherm as iso
from isotherm.traces.files import read_placement, write_placement

LAYERS, EXPERTS, RANKS = (3, 4, 7), 12, 4
TOPOLOGY = iso.Topology.for_model(experts=EXPERTS, redundant=4, ranks=RANKS)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    stand_in(monkeypatch, "vllm.logger", logger=logging.getLogger("vllm"))
    manager = "vllm.model_executor.layers.fused_moe.expert_map_manager"
    stand_in(monkeypatch, manager, determine_expert_map=None)
    return load(monkeypatch, "vllm-ascend", "vllm_ascend.eplb.core.eplb_utils")


def planned(tmp_path: Path) -> tuple[Path, iso.Plan]:
    path, heat_LE = tmp_path / "expert_map.json", np.random.default_rng(4).lognormal(3, 1, (3, EXPERTS))
    plan = iso.plan(heat_LE, TOPOLOGY, engine="vllm-ascend")
    write_placement(plan, path, format="vllm-ascend", ranks=RANKS, layer_ids=LAYERS)
    return path, plan


def test_it_reads_the_slots_of_every_layer_by_its_place(tmp_path: Path, reader: ModuleType) -> None:
    path, plan = planned(tmp_path)
    for row, slots_P in enumerate(plan.placement.slot_to_expert):
        slots_GS, count = reader.expert_file_to_tensor(path, row)
        assert count == TOPOLOGY.slots
        assert (slots_GS.numpy() == slots_P.reshape(RANKS, -1)).all()
    # A layer behind the last is that of multi-token prediction, and one more is refused.
    assert reader.expert_file_to_tensor(path, len(LAYERS)) == (None, TOPOLOGY.slots)
    with pytest.raises(ValueError, match="Invalid EPLB Table"):
        reader.expert_file_to_tensor(path, len(LAYERS) + 1)
    assert read_placement(path, moe_layers=LAYERS).placement == plan.placement


def test_it_sends_by_the_map_what_the_plan_says_that_it_sends(tmp_path: Path, reader: ModuleType) -> None:
    path, plan = planned(tmp_path)
    assert len(json.loads(path.read_text())["layer_list"]) == len(LAYERS)
    for row, shares_P in enumerate(plan.shares):
        slots_GS, _ = reader.expert_file_to_tensor(path, row)
        map_GE = torch.full((RANKS, EXPERTS), -1, dtype=torch.int32)
        for rank, slots_S in enumerate(slots_GS):
            map_GE[rank, slots_S] = torch.arange(len(slots_S), dtype=torch.int32)
        sent_P = np.zeros(TOPOLOGY.slots)
        for rank in range(RANKS):
            sent_P[reader.generate_log2phy_map(map_GE, rank).numpy()] += 1 / RANKS
        assert sent_P == pytest.approx(shares_P)
