"""Our plans in vLLM's own hands: registered by its plug-in loader, and carried out by its own code."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from isotherm import read_heat
from isotherm.engines.vllm import place_experts
from isotherm.topology import Topology
from isotherm_vllm import register
from ranks import PRELOADED, run_ranks

PRELOADED.append("vllm.distributed.eplb.eplb_state")

TOPOLOGY = Topology(ranks=2, slots_per_rank=6)
LAYERS, EXPERTS = 3, 8


@pytest.fixture
def registry() -> Any:
    """vLLM's policies, as they were before and will be after."""
    from vllm.distributed.eplb.policy import EPLB_POLICIES

    with mock.patch.dict(EPLB_POLICIES):
        yield EPLB_POLICIES


def skewed(seed: int = 0, *, layers: int = LAYERS, experts: int = EXPERTS) -> torch.Tensor:
    heat = np.exp(np.random.default_rng(seed).normal(0, 1, (layers, experts)))
    return torch.from_numpy((1000 * heat).astype(np.int32))


def start(topology: Topology, experts: int, layers: int) -> torch.Tensor:
    from vllm.distributed.eplb.eplb_state import EplbState

    row = EplbState.build_initial_global_physical_to_logical_map(experts, topology.slots - experts)
    return torch.tensor([list(row)] * layers)


def test_the_plug_in_is_found_by_vllm_and_is_asked_for_by_the_environment(
    registry: dict[str, type], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.plugins import DEFAULT_PLUGINS_GROUP, load_plugins_by_group

    plug_in = load_plugins_by_group(DEFAULT_PLUGINS_GROUP)["isotherm"]
    stock = registry["default"]
    monkeypatch.delenv("ISOTHERM_VLLM", raising=False)
    plug_in()
    assert registry["default"] is stock
    monkeypatch.setenv("ISOTHERM_VLLM", "1")
    plug_in()
    ours = registry["default"]
    assert issubclass(ours, stock)
    assert ours is not stock
    plug_in()
    assert registry["default"] is ours


def test_nothing_is_compiled_after_the_plug_in_is_loaded(
    registry: dict[str, type], monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba.core import event

    monkeypatch.setenv("ISOTHERM_VLLM", "1")
    register()
    topology = Topology(ranks=4, slots_per_rank=5, nodes=2)
    with event.install_recorder("numba:compile") as compiled:
        answers = [
            registry["default"].rebalance_experts(loads, topology.slots, 1, 2, 4, held)
            for loads in (skewed(experts=16), torch.zeros(LAYERS, 16, dtype=torch.int32))
            for held in (None, start(topology, 16, LAYERS), start(topology, 16, LAYERS)[:, :-5])
        ]
    assert [str(kind.data) for _, kind in compiled.buffer] == []
    assert len(answers) == 6


def test_a_wrong_setting_leaves_vllm_as_it_was(
    registry: dict[str, type], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stock = registry["default"]
    monkeypatch.setenv("ISOTHERM_VLLM", "on")
    monkeypatch.setattr(logging.getLogger("isotherm"), "handlers", [caplog.handler])
    register()
    assert registry["default"] is stock
    assert "vLLM goes on without Isotherm" in caplog.text


CASES = [
    (Topology(ranks=2, slots_per_rank=6), 8, 1),
    (Topology(ranks=4, slots_per_rank=3, nodes=2), 8, 4),
    (Topology(ranks=8, slots_per_rank=3, nodes=2), 16, 1),
    (Topology(ranks=4, slots_per_rank=4), 16, 1),
]


@pytest.mark.parametrize("policy", ["stock", "isotherm"])
@pytest.mark.parametrize(("topology", "experts", "groups"), CASES)
def test_the_policy_keeps_vllms_contract(
    registry: dict[str, type],
    monkeypatch: pytest.MonkeyPatch,
    policy: str,
    topology: Topology,
    experts: int,
    groups: int,
) -> None:
    """What vLLM's balancer and its transfers take for granted, of its own policy and of ours."""
    from vllm.distributed.eplb.eplb_state import compute_logical_maps

    if policy == "isotherm":
        monkeypatch.setenv("ISOTHERM_VLLM", "1")
        register()
    held = start(topology, experts, LAYERS)
    for loads in (skewed(experts=experts), torch.zeros(LAYERS, experts, dtype=torch.int32)):
        for old in (None, held):
            goal = registry["default"].rebalance_experts(
                loads, topology.slots, groups, topology.nodes, topology.ranks, old
            )
            assert (goal.device.type, goal.dtype) == ("cpu", torch.int64)
            assert goal.shape == (LAYERS, topology.slots)
            places, counts = compute_logical_maps(goal, experts)
            assert counts.min() >= 1
            assert (counts.sum(dim=1) == topology.slots).all()
            for layer in range(LAYERS):
                for expert in range(experts):
                    mine = places[layer, expert, : counts[layer, expert]]
                    assert (goal[layer, mine] == expert).all()


def balance_over_ranks(rank: int, folder: str, disagree: bool) -> dict[str, Any]:
    """One rank of vLLM's balancer: loads are counted, a plan is asked for, and weights are moved, by vLLM."""
    os.environ |= {"ISOTHERM_VLLM": "1", "ISOTHERM_RECORD": f"{folder}/handed.heat"}
    from vllm.config import ParallelConfig, VllmConfig, set_current_vllm_config
    from vllm.distributed import parallel_state
    from vllm.distributed.eplb import eplb_state
    from vllm.distributed.eplb.policy import EPLB_POLICIES

    register()
    if disagree and rank == 1:
        EPLB_POLICIES["default"].planner._place = lambda *_, **__: np.zeros((LAYERS, 12), np.int64)
    parallel = ParallelConfig(tensor_parallel_size=2, enable_expert_parallel=True)
    # vLLM refuses this in a configuration for CPUs; the balancer itself runs on any device.
    parallel.enable_eplb = True
    parallel.eplb_config.num_redundant_experts = TOPOLOGY.slots - EXPERTS
    parallel.eplb_config.use_async = False
    parallel.eplb_config.communicator = "torch_gloo"
    config = VllmConfig(parallel_config=ParallelConfig(tensor_parallel_size=2))
    config.parallel_config = parallel
    config.model_config = SimpleNamespace(is_moe=True, model="small", compute_hash=lambda: "small")
    with set_current_vllm_config(config, check_compile=False):
        parallel_state.init_distributed_environment(2, rank, f"file://{folder}/store", rank, "gloo")
        parallel_state.initialize_model_parallel(2)
        state = eplb_state.EplbState(parallel, torch.device("cpu"))
        model = ModelOnRank(rank)
        state.add_model(model, config.model_config)
        counted = state.model_states["small"]
        maps = []
        # Besides, its balancer wants a device only to time itself and to wait for its own transfers.
        device = mock.patch.multiple(torch.accelerator, current_stream=mock.DEFAULT)
        with device, mock.patch.object(torch, "Event", mock.MagicMock()):
            state.rearrange(is_profile=True)
            for seed in (0, 1):
                counted.expert_load_window.zero_()
                _count(counted, skewed(seed), rank)
                state.rearrange()
                maps.append(counted.physical_to_logical_map.tolist())
    first = TOPOLOGY.slots_per_rank * rank
    right = counted.physical_to_logical_map[:, first : first + TOPOLOGY.slots_per_rank].float()
    held = torch.stack([weights[0][:, 0] for weights in model.expert_weights])
    EPLB_POLICIES["default"].planner._windows.close()
    return {"maps": maps, "right": torch.equal(held, right)}


class ModelOnRank:
    """As much of a model as vLLM's balancer touches. The weights of an expert are its number."""

    num_moe_layers, num_expert_groups, num_shared_experts = LAYERS, 1, 0
    num_logical_experts = num_routed_experts = EXPERTS
    num_physical_experts, num_redundant_experts = TOPOLOGY.slots, TOPOLOGY.slots - EXPERTS
    num_local_physical_experts = TOPOLOGY.slots_per_rank

    def __init__(self, rank: int) -> None:
        mine = slice(TOPOLOGY.slots_per_rank * rank, TOPOLOGY.slots_per_rank * (rank + 1))
        experts = start(TOPOLOGY, EXPERTS, 1)[0, mine]
        self.moe_layers: list[Any] = []
        self.expert_weights = [[experts[:, None].repeat(1, 16).float()] for _ in range(LAYERS)]

    def set_eplb_state(self, *_: Any) -> None:
        pass


def _count(counted: Any, loads: torch.Tensor, rank: int) -> None:
    """Each rank's half of the loads, on the first slot of each expert."""
    share = loads // 2 if rank else loads - loads // 2
    window = counted.expert_load_window[0]
    for layer in range(LAYERS):
        row = counted.physical_to_logical_map[layer].tolist()
        for expert in range(EXPERTS):
            window[layer, row.index(expert)] = share[layer, expert]


def test_vllm_moves_weights_by_our_plan_and_every_slot_holds_what_its_map_says(tmp_path: Path) -> None:
    ranks = run_ranks(balance_over_ranks, 2, tmp_path, str(tmp_path), False, timeout=600)
    held, wanted = start(TOPOLOGY, EXPERTS, LAYERS).numpy(), []
    for seed in (0, 1):
        held = place_experts(skewed(seed).numpy(), TOPOLOGY, held)
        wanted.append(held.tolist())
    assert [rank["maps"] for rank in ranks] == [wanted, wanted]
    assert wanted[0] != start(TOPOLOGY, EXPERTS, LAYERS).tolist()
    assert [rank["right"] for rank in ranks] == [True, True]
    trace = read_heat(tmp_path / "handed.heat")
    np.testing.assert_array_equal([window.heat_LE for window in trace], [skewed(0), skewed(1)])


def test_ranks_that_disagree_take_vllms_own_plan_together(tmp_path: Path) -> None:
    from vllm.distributed.eplb.policy import DefaultEplbPolicy

    ranks = run_ranks(balance_over_ranks, 2, tmp_path, str(tmp_path), True, timeout=600)
    held, wanted = start(TOPOLOGY, EXPERTS, LAYERS), []
    for seed in (0, 1):
        held = DefaultEplbPolicy.rebalance_experts(skewed(seed), TOPOLOGY.slots, 1, 1, 2, held)
        wanted.append(held.tolist())
    assert [rank["maps"] for rank in ranks] == [wanted, wanted]
    assert [rank["right"] for rank in ranks] == [True, True]
