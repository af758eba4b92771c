"""Our planners beside SGLang's and vLLM Ascend's own, in those packages' code. `make test-peers` runs it.

Neither package can be imported whole without its device. The parts that plan can: a bare module stands in
the place of each package, so that only what is asked for is run, and `STAND_INS` for what they import.
"""

import importlib
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from isotherm.engines.sglang import rebalance_experts
from isotherm.engines.vllm_ascend import IsothermEplb

PEERS = ("sglang", "vllm_ascend")
if any(find_spec(peer) is None for peer in PEERS):
    pytest.skip(
        "SGLang and vLLM Ascend are not installed: make test-peers runs this", allow_module_level=True
    )

# What vLLM Ascend 0.23 does with tensors, numpy 2 frowns upon.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LAYERS, EXPERTS, RANKS, SLOTS = 4, 72, 8, 10  # one redundant slot a rank: more, vLLM Ascend's default refuses
STAND_INS = {
    "vllm": {},
    "vllm.logger": {
        "logger": SimpleNamespace(**dict.fromkeys(("info", "warning", "debug"), print), error=pytest.fail)
    },
    "vllm.distributed": {"get_ep_group": None},
    "vllm_ascend.distributed": {},
    "vllm_ascend.distributed.parallel_state": {"get_dynamic_eplb_group": None},
    "vllm_ascend.eplb.core.eplb_utils": {"generate_log2phy_map": None},
    "torch_npu": {},
}


@pytest.fixture(scope="module", autouse=True)
def parts():
    """The packages as bare modules: what is in them is imported, they are not."""
    with pytest.MonkeyPatch.context() as patch:
        for peer in PEERS:
            bare = ModuleType(peer)
            bare.__path__ = list(find_spec(peer).submodule_search_locations)
            patch.setitem(sys.modules, peer, bare)
        for name, attributes in STAND_INS.items():
            stand_in = ModuleType(name)
            vars(stand_in).update(attributes, __path__=[])
            patch.setitem(sys.modules, name, stand_in)
        patch.setattr(torch, "npu", SimpleNamespace(device_count=lambda: RANKS), raising=False)
        yield


def sglang(name):
    return importlib.import_module(f"sglang.srt.eplb.{name}")


def ascend(name):
    return importlib.import_module(f"vllm_ascend.eplb.core.{name}")


def make_heat(seed):
    return np.random.default_rng(seed).lognormal(0, 0.7, (LAYERS, EXPERTS)) * 1000


def make_held():
    """As engines start: experts in order, the redundant slots of each rank hold the next rank's first."""
    own_GS = np.arange(EXPERTS).reshape(RANKS, -1)
    held_GS = np.concatenate([own_GS, np.roll(own_GS, -1, axis=0)[:, : SLOTS - own_GS.shape[1]]], axis=1)
    return np.repeat(held_GS.reshape(1, -1), LAYERS, axis=0)


def arrivals(before, after):
    """Experts that a rank receives from elsewhere."""
    pairs = zip(np.asarray(before).reshape(-1, SLOTS), np.asarray(after).reshape(-1, SLOTS), strict=True)
    return sum(len(set(new.tolist()) - set(old.tolist())) for old, new in pairs)


def asked(heat_LE):
    """What SGLang passes to its planner, by name."""
    algorithm = sglang("eplb_algorithms").EplbAlgorithm.deepseek
    return {
        "tokens_per_expert": torch.from_numpy(heat_LE)[None],
        "num_physical_experts": RANKS * SLOTS,
        "num_local_physical_experts": SLOTS,
        "num_groups": None,
        "num_nodes": 1,
        "algorithm": algorithm,
    }


@pytest.mark.parametrize("seed", range(3))
def test_sglang_gets_what_its_own_planner_gives_with_fewer_moves(seed):
    heat_LE, held = make_heat(seed), torch.from_numpy(make_held())
    theirs = sglang("eplb_algorithms").rebalance_experts(**asked(heat_LE))
    ours = rebalance_experts(**asked(heat_LE), current=held)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert (mine.dtype, mine.device, mine.dim()) == (wanted.dtype, wanted.device, wanted.dim())
        assert mine.shape[:2] == wanted.shape[:2]
    slot_to_expert, slots, counts = ours
    assert (counts > 0).all()
    assert (counts.sum(dim=1) == RANKS * SLOTS).all()
    told = sglang("expert_location")._compute_logical_to_all_physical_map(
        physical_to_logical_map=slot_to_expert, num_logical_experts=EXPERTS, ep_size=RANKS, moe_ep_rank=None
    )
    assert torch.equal(told, slots)
    moved, moved_by_theirs = arrivals(held, slot_to_expert), arrivals(held, theirs[0])
    print(f"SGLang: experts received {moved}, with its own planner {moved_by_theirs}")
    assert 0 < moved < moved_by_theirs / 2


@pytest.mark.parametrize("name", ["elasticity_aware", "elasticity_aware_hierarchical"])
def test_sglangs_elastic_planners_are_not_replaced(name):
    """They leave out ranks that are gone."""
    algorithm = sglang("eplb_algorithms").EplbAlgorithm[name]
    with pytest.raises(ValueError, match=f"eplb_algorithm={name} plans around ranks that are gone"):
        rebalance_experts(**asked(make_heat(0)) | {"algorithm": algorithm})


def test_sglang_rebalances_through_our_planner_from_what_it_holds(monkeypatch):
    location, algorithms = sglang("expert_location"), sglang("eplb_algorithms")
    moe = SimpleNamespace(
        ep_num_redundant_experts=RANKS * SLOTS - EXPERTS,
        eplb_algorithm="auto",
        ep_dispatch_algorithm="dynamic",
    )
    parallel = SimpleNamespace(ep_size=RANKS, elastic_ep_initial_size=None, nnodes=1)
    sizes = location.ModelConfigForExpertLocation(num_layers=LAYERS, num_logical_experts=EXPERTS)
    monkeypatch.setattr(location, "get_exec", lambda: SimpleNamespace(moe=moe))
    monkeypatch.setattr(location, "get_parallel", lambda: parallel)
    monkeypatch.setattr(location, "get_device", lambda: SimpleNamespace(device="cpu"))
    monkeypatch.setattr(location.ModelConfigForExpertLocation, "from_model_config", lambda model: sizes)
    monkeypatch.setattr(algorithms, "rebalance_experts", rebalance_experts)
    heat_LE, held = make_heat(7), torch.from_numpy(make_held())
    slots = location._compute_logical_to_all_physical_map(held, EXPERTS, RANKS, None)
    resources = sys.modules["sglang.srt.runtime_context"].get_resources()
    monkeypatch.setattr(
        resources,
        "expert_location_metadata",
        location.ExpertLocationMetadata._init_raw(RANKS, held, slots, 0),
    )
    planned = location.ExpertLocationMetadata.init_by_eplb(None, torch.from_numpy(heat_LE))
    wanted, _, _ = rebalance_experts(**asked(heat_LE), current=held)
    assert torch.equal(planned.physical_to_logical_map, wanted)
    assert arrivals(held, wanted) > 0


@pytest.mark.parametrize("kind", ["DefaultEplb", "SwiftBalanceEplb"])
def test_ascend_takes_our_table_with_fewer_moves_than_its_own_policies(kind):
    worker = ascend("eplb_worker").EplbWorker
    heat_LE, held = make_heat(11), torch.from_numpy(make_held().reshape(LAYERS, RANKS, SLOTS))
    counts = np.stack([np.bincount(row.reshape(-1)) for row in held.numpy()])
    layer = np.arange(LAYERS)[:, None, None]
    load = torch.from_numpy((heat_LE / counts)[layer, held.numpy()])
    theirs = getattr(ascend("policy.policy_factory"), kind)().rebalance_experts(held.clone(), load)
    ours = IsothermEplb().rebalance_experts(held, load)
    assert ours[0] == 1
    assert sorted(ours[1]) == sorted(theirs[1]) == list(range(LAYERS))
    table = ours[2].clone()
    worker.check_expert_placement(None, held, table)  # resets layers that it does not take, and says so
    assert torch.equal(table, ours[2])
    assert torch.equal(worker.global2local(None, worker.local2global(None, table), SLOTS), table)
    tables = {"held": held.numpy(), "ours": table.numpy(), kind: np.array(theirs[2])}
    worst = {name: worker._compute_imbalance(each, heat_LE)[1] for name, each in tables.items()}
    moved = {name: arrivals(held, each) for name, each in tables.items()}
    print(f"vLLM Ascend: worst layer's imbalance {worst}, experts received {moved}")
    assert worst["ours"] < worst["held"]
    assert 0 < moved["ours"] < moved[kind]


def test_ascend_makes_our_policy_where_it_stands_in_the_place_of_one(monkeypatch):
    factory = ascend("policy.policy_factory")
    monkeypatch.setattr(factory, "SwiftBalanceEplb", IsothermEplb)
    assert isinstance(factory.PolicyFactory.generate_policy(2), IsothermEplb)
