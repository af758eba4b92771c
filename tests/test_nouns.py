"""The nouns: what they refuse, what they derive, and that nothing changes them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import isotherm as iso
from isotherm.placement import check_shares, digest, expert_sums, rank_loads

TOPOLOGY = iso.Topology(ranks=4, slots_per_rank=3, nodes=2)


def window(**changes):
    fields = {
        "heat_KSLE": np.arange(2 * 2 * 2 * 3).reshape(2, 2, 2, 3),
        "slot_load_LGS": np.ones((2, 4, 3), np.int64),
        "slice_steps": (8, 12, 16),
        "tokens_K": np.array([5, 7]),
        "layer_ids": (3, 4),
    }
    return iso.HeatWindow(**{**fields, **changes})


REFUSED = {
    "ranks=0 is below 1": lambda: iso.Topology(ranks=0, slots_per_rank=1),
    "slots_per_rank=-2 is below 1": lambda: iso.Topology(ranks=2, slots_per_rank=-2),
    "ranks=6 do not divide over nodes=4": lambda: iso.Topology(ranks=6, slots_per_rank=1, nodes=4),
    "choose redundant=2 or 6": lambda: iso.Topology.for_model(experts=10, redundant=5, ranks=4),
    "choose redundant=2": lambda: iso.Topology.for_model(experts=10, redundant=1, ranks=4),
    "redundant=-1 is negative": lambda: iso.Topology.for_model(experts=10, redundant=-1, ranks=1),
    "give at least slots_per_rank=4": lambda: TOPOLOGY.check_holds(13),
    "top_k=5 exceeds experts=4": lambda: iso.MoEShape(1, 4, 5),
    "layer_ids=(2, 1) must be 2 ascending": lambda: iso.MoEShape(2, 4, 1, (2, 1)),
    "layer_ids=(1,) must be 2 ascending": lambda: iso.MoEShape(2, 4, 1, (1,)),
    "slot_to_expert has shape (3,)": lambda: iso.Placement([0, 1, 2], 3),
    "layer 1: slot 2 names expert 3, outside": lambda: iso.Placement([[0, 1, 2], [0, 1, 3]], 3),
    "layer 0: experts [1] have no slot": lambda: iso.Placement([[0, 2, -1]], 3),
    "mode='fast' is unknown: choose one of off, count": lambda: iso.Config(mode="fast"),
    "window_steps=10 does not divide into slices=3": lambda: iso.Config(window_steps=10, slices=3),
    "slices=0 is below 1": lambda: iso.Config(slices=0),
    "max_imbalance=0.5 is below 1": lambda: iso.Config(max_imbalance=0.5),
    "min_gain=-0.1": lambda: iso.Config(min_gain=-0.1),
    "heartbeat_seconds=0 must be above 0": lambda: iso.Config(heartbeat_seconds=0),
    "step_ms=nan must be above 0": lambda: iso.Config(step_ms=float("nan")),
    "link_bytes_per_second=inf must be": lambda: iso.Config(link_bytes_per_second=float("inf")),
    "tokens_per_read=0 must be above 0": lambda: iso.Config(tokens_per_read=0),
    "expert_share=1.5 is a part": lambda: iso.Config(expert_share=1.5),
    "decode_weight=-1 must be finite": lambda: iso.Config(decode_weight=-1),
    "prefill_weight and decode_weight are both 0": lambda: iso.Config(prefill_weight=0, decode_weight=0),
    "confidence=nan must be finite": lambda: iso.Config(confidence=float("nan")),
    "locality_slack=1 is balancedness to give up": lambda: iso.Config(locality_slack=1),
    "objective='speed' is unknown: choose auto, tokens or reads": lambda: iso.Config(objective="speed"),
    "forecast_windows=0 is below 1": lambda: iso.Config(forecast_windows=0),
    "plan_life_steps=0 is below 1": lambda: iso.Config(plan_life_steps=0),
    "active_steps_LE has shape (1, 3): give": lambda: window(active_steps_LE=np.ones((1, 3), int)),
    "active_steps_LE holds up to 9": lambda: window(active_steps_LE=np.full((2, 3), 9)),
    "active_steps_LE holds up to 8": lambda: window(
        heat_KSLE=np.ones((2, 2, 2, 3), int), active_steps_LE=np.full((2, 3), 8)
    ),
    "active_steps_LE holds -1": lambda: window(active_steps_LE=np.full((2, 3), -1)),
    "source_heat_NLE of shape (1, 2, 3) does not add up": lambda: window(
        source_heat_NLE=np.ones((1, 2, 3), int)
    ),
    "tokens_K holds -1": lambda: window(tokens_K=[5, -1]),
    "does not fit 1 kinds": lambda: window(tokens_K=[5]),
    "slice_steps=(8, 16)": lambda: window(slice_steps=(8, 16)),
    "layer_ids=(3,)": lambda: window(layer_ids=(3,)),
    "sum to 0.900000, not 1": lambda: check_shares(iso.Placement([[0, 0]], 1), np.array([[0.5, 0.4]])),
    "layer 0, slot 1: share 1.0 of expert -1": lambda: check_shares(
        iso.Placement([[0, -1]], 1), np.array([[1.0, 1.0]])
    ),
    "shares have shape (1, 1), the placement (1, 2)": lambda: check_shares(
        iso.Placement([[0, 0]], 1), np.ones((1, 1))
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_with_value_and_rule(message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is what is tested
        REFUSED[message]()
    assert message in str(error.value)


def test_slots_lie_rank_by_rank():
    assert (TOPOLOGY.slots, TOPOLOGY.ranks_per_node) == (12, 2)
    assert TOPOLOGY.slot_to_rank_P.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [TOPOLOGY.rank_of(slot) for slot in (0, 2, 3, 11)] == [0, 0, 1, 3]
    default = iso.Placement.default(iso.MoEShape(1, 10, 2), TOPOLOGY)
    assert default.slot_to_expert[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert default.replicas_LE[0].tolist() == [2, 2, 1, 1, 1, 1, 1, 1, 1, 1]
    assert default.even_shares()[0].tolist() == [0.5, 0.5, *[1.0] * 8, 0.5, 0.5]


def test_nothing_changes_a_noun():
    source = np.array([[0, 1, 0, 1]])
    placement = iso.Placement(source, 2)
    source[:] = 7
    assert placement.slot_to_expert.tolist() == [[0, 1, 0, 1]]
    with pytest.raises(ValueError, match="read-only"):
        placement.slot_to_expert[0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        window().heat_KSLE[:] = 0
    for noun, field in ((TOPOLOGY, "ranks"), (iso.Config(), "mode"), (placement, "experts")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(noun, field, 1)
    assert placement == iso.Placement([[0, 1, 0, 1]], 2) != iso.Placement([[1, 0, 0, 1]], 2)
    assert len({placement, iso.Placement([[0, 1, 0, 1]], 2)}) == 1


def test_a_window_adds_up_its_axes():
    seen = window()
    assert seen.heat_LE.tolist() == seen.heat_KSLE.sum((0, 1)).tolist()
    assert seen.heat_SLE.tolist() == seen.heat_KSLE.sum(0).tolist()
    assert seen.load_LG.tolist() == [[3] * 4] * 2
    wanted = seen.heat_LE
    sources = window(source_heat_NLE=np.stack([wanted // 2, wanted - wanted // 2]))
    assert sources.source_heat_NLE.sum(axis=0).tolist() == wanted.tolist()
    assert window(active_steps_LE=np.full((2, 3), 8)).active_steps_LE.max() == 8
    assert (seen.start_step, seen.end_step, seen.steps) == (8, 16, 8)


def test_imbalance_is_hottest_over_mean():
    load_LG = np.array([[4, 2, 0, 2], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert iso.layer_imbalance(load_LG).tolist() == [2.0, 1.0, 1.0]
    assert iso.overall_imbalance(load_LG) == (4 + 0 + 1) / (2 + 0 + 1)
    assert iso.overall_imbalance(np.zeros((2, 3))) == 1.0
    summary = iso.ImbalanceSummary.of(load_LG, (5, 6, 9))
    assert (summary.worst, summary.worst_layer, summary.p50, summary.mean) == (2.0, 5, 1.0, 4 / 3)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_loads_and_sums_are_those_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    rows = [rng.permutation([0, 1, 2, 3, 4, *rng.integers(-1, 5, 7)]) for _ in range(2)]
    placement = iso.Placement(np.stack(rows), 5)
    heat_LE, shares_LP = rng.random((2, 5)), rng.random((2, 12))
    shares_LP[placement.slot_to_expert < 0] = 0
    loads, sums = np.zeros((2, 4)), np.zeros((2, 5))
    for layer in range(2):
        for slot in range(12):
            expert = placement.slot_to_expert[layer, slot]
            if expert >= 0:
                loads[layer, slot // 3] += heat_LE[layer, expert] * shares_LP[layer, slot]
                sums[layer, expert] += shares_LP[layer, slot]
    assert rank_loads(heat_LE, placement, shares_LP, TOPOLOGY) == pytest.approx(loads)
    assert expert_sums(placement, shares_LP) == pytest.approx(sums)


def test_a_plan_travels_as_bytes():
    heat = np.random.default_rng(3).random((2, 10))
    current = iso.Placement.default(iso.MoEShape(2, 10, 2), TOPOLOGY)
    plan = iso.plan(heat, TOPOLOGY, current)
    data = plan.to_bytes()
    arrived = iso.Plan.from_bytes(data)
    assert plan.moves
    assert (arrived.placement, arrived.moves, arrived.reason) == (plan.placement, plan.moves, plan.reason)
    assert (arrived.shares == plan.shares).all()
    assert (arrived.bound.tolist(), arrived.layer_ids) == (plan.bound.tolist(), plan.layer_ids)
    assert arrived.to_bytes() == data
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    assert digest(bytes(changed)) != digest(data) < 2**63
