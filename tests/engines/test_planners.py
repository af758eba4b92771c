"""Planners in the signatures of SGLang and vLLM Ascend: what they promise, without those packages."""

import logging
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from isotherm.engines.sglang import rebalance_experts
from isotherm.engines.vllm_ascend import IsothermEplb

LAYERS, EXPERTS, RANKS, SLOTS = 3, 16, 4, 5


def make_heat(seed):
    return np.random.default_rng(seed).pareto(1.5, (LAYERS, EXPERTS)) * 100 + 1


def make_held(seed):
    """Every expert, and no rank holds one twice."""
    rng = np.random.default_rng(seed)
    redundant = [rng.permutation(EXPERTS)[:RANKS] for _ in range(LAYERS)]
    rows = []
    for extra in redundant:
        ranks = np.arange(EXPERTS).reshape(RANKS, -1)
        extra = np.array([e if e not in ranks[g] else (e + 5) % EXPERTS for g, e in enumerate(extra)])
        rows.append(np.concatenate([ranks, extra[:, None]], axis=1).reshape(-1))
    return np.stack(rows)


def arrivals(before_LP, after_LP):
    """Experts that a rank receives from elsewhere."""
    before, after = (np.asarray(each).reshape(-1, SLOTS).tolist() for each in (before_LP, after_LP))
    return sum(len(set(new) - set(old)) for old, new in zip(before, after, strict=True))


def slot_loads(heat_LE, held_LGS):
    """What each slot receives of its expert's tokens, equal parts."""
    rows = [heat_E[held] / np.bincount(held.reshape(-1))[held] for heat_E, held in zip(heat_LE, held_LGS)]
    return np.stack(rows)


def sglang_plan(heat_LE, **options):
    steps = torch.from_numpy(np.stack([heat_LE / 4, heat_LE * 3 / 4]))
    return rebalance_experts(steps, RANKS * SLOTS, SLOTS, None, 1, **options)


@pytest.mark.parametrize("held", [None, make_held(0)])
def test_sglang_gets_three_maps_that_tell_the_same(held):
    current = None if held is None else torch.from_numpy(held)
    slot_to_expert, slots, counts = sglang_plan(make_heat(0), current=current)
    assert [each.dtype for each in (slot_to_expert, slots, counts)] == [torch.int64] * 3
    assert slot_to_expert.shape == (LAYERS, RANKS * SLOTS)
    assert slots.shape == (LAYERS, EXPERTS, int(counts.max()))
    for layer in range(LAYERS):
        for expert in range(EXPERTS):
            wanted = [p for p, e in enumerate(slot_to_expert[layer].tolist()) if e == expert]
            assert wanted, "an expert without a slot"
            assert counts[layer, expert] == len(wanted)
            assert slots[layer, expert].tolist() == wanted + [-1] * (slots.shape[2] - len(wanted))


def test_sglang_layers_without_tokens_and_balanced_ones_stay_as_they_are():
    held, heat_LE = torch.from_numpy(make_held(1)), make_heat(1)
    heat_LE[1] = 0
    after, _, _ = sglang_plan(heat_LE, current=held)
    assert torch.equal(after[1], held[1])
    assert not torch.equal(after, held)
    again, _, _ = sglang_plan(heat_LE, current=held, max_imbalance=100.0)
    assert torch.equal(again, held)


def test_sglang_is_asked_what_its_slots_hold(monkeypatch):
    held, heat_LE = torch.from_numpy(make_held(2)), make_heat(2)
    metadata = SimpleNamespace(physical_to_logical_map_cpu=held)
    module = SimpleNamespace(get_global_expert_location_metadata=lambda: metadata)
    monkeypatch.setitem(sys.modules, "sglang.srt.eplb.expert_location", module)
    found, _, _ = sglang_plan(heat_LE)
    given, _, _ = sglang_plan(heat_LE, current=held)
    assert torch.equal(found, given)
    metadata.physical_to_logical_map_cpu = held[:, :-RANKS]  # ranks that came or left
    grown, _, _ = sglang_plan(heat_LE)
    assert arrivals(held, grown) > arrivals(held, found)


def test_sglangs_elastic_planner_is_not_replaced():
    with pytest.raises(ValueError, match="eplb_algorithm=elasticity_aware plans around ranks that are gone"):
        sglang_plan(make_heat(0), algorithm=SimpleNamespace(name="elasticity_aware"))


def test_ascend_keeps_what_its_worker_checks_and_lowers_the_hottest_rank():
    held_LGS, heat_LE = make_held(3).reshape(LAYERS, RANKS, SLOTS), make_heat(3)
    load_LGS = slot_loads(heat_LE, held_LGS)
    changed, layers, table = IsothermEplb().rebalance_experts(torch.from_numpy(held_LGS), load_LGS)
    assert changed == 1
    assert table.dtype == torch.int64
    assert table.shape == held_LGS.shape
    for before_GS, after_GS in zip(held_LGS, table.numpy(), strict=True):
        assert set(after_GS.flat) == set(range(EXPERTS))
        for before_S, after_S in zip(before_GS, after_GS, strict=True):
            assert len(set(after_S)) == SLOTS, "an expert twice on a rank"
            stays = np.isin(after_S, before_S)
            assert (after_S[stays] == before_S[stays]).all(), "moved inside a rank"
    peaks = [peak(heat_LE, each) for each in (held_LGS, table.numpy())]
    assert (peaks[1] <= peaks[0] + 1e-9).all()
    assert peaks[1].sum() < 0.9 * peaks[0].sum()
    load_LG = load_LGS.sum(axis=2)
    left_L = peaks[1] / heat_LE.mean(axis=1) * load_LG.mean(axis=1) / load_LG.max(axis=1)
    assert list(layers) == list(np.argsort(left_L)), "those first that gain most"


def peak(heat_LE, table_LGS):
    """The most that a rank receives, where rank g sends an expert's tokens to replica g modulo their
    number."""
    peaks = []
    for heat_E, table_GS in zip(heat_LE, table_LGS, strict=True):
        load_G = np.zeros(RANKS)
        for expert, heat in enumerate(heat_E):
            homes = np.flatnonzero((table_GS == expert).any(axis=1))
            for source in range(RANKS):
                load_G[homes[source % len(homes)]] += heat / RANKS
        peaks.append(load_G.max())
    return np.array(peaks)


def test_ascend_adds_stages_up_and_takes_unknown_loads_for_none():
    held_LGS = make_held(4).reshape(LAYERS, RANKS, SLOTS)
    load_LGS = slot_loads(make_heat(4), held_LGS)
    load_LGS[0, 0, 0] = -1
    changed, _, once = IsothermEplb().rebalance_experts(held_LGS, load_LGS)
    stages = np.stack([load_LGS, np.zeros_like(load_LGS)])
    _, _, staged = IsothermEplb().rebalance_experts(torch.from_numpy(held_LGS), torch.from_numpy(stages))
    assert changed == 1
    assert torch.equal(once, staged)


def test_ascend_without_heat_changes_nothing():
    held_LGS = make_held(5).reshape(LAYERS, RANKS, SLOTS)
    changed, _, table = IsothermEplb().rebalance_experts(held_LGS, np.zeros(held_LGS.shape))
    assert changed == 0
    assert table.tolist() == held_LGS.tolist()


def test_ascend_keeps_its_table_and_says_why_where_no_plan_can_be_made(caplog):
    held_LGS = make_held(6).reshape(LAYERS, RANKS, SLOTS)
    with caplog.at_level(logging.ERROR, "isotherm"):
        changed, _, table = IsothermEplb().rebalance_experts(held_LGS, np.ones((LAYERS, RANKS, SLOTS + 1)))
    assert changed == 0
    assert table.tolist() == held_LGS.tolist()
    assert "expert_workload has shape (3, 4, 6), the table (3, 4, 5)" in caplog.text


def test_an_ascend_policy_travels_to_the_planning_process():
    assert pickle.loads(pickle.dumps(IsothermEplb(1.2))).max_imbalance == 1.2
