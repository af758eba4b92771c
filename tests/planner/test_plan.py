"""What holds for every plan, whatever the heat, the topology and the policy."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import isotherm as iso
from isotherm.placement import expert_sums, rank_loads
from isotherm.planner import PlanRequest, make_plan

POLICIES = ("incremental", "deepseek", "swift", "flash", "static", "random")


@st.composite
def problems(draw, with_current=None):
    """(heat, topology, current or None)"""
    ranks, size = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    experts = draw(st.integers(size, ranks * size))
    layers = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    heat = np.round(rng.lognormal(0, draw(st.floats(0, 2)), (layers, experts)) * 100)
    heat[rng.random(heat.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0
    topology = iso.Topology(ranks=ranks, slots_per_rank=size)
    if not (draw(st.booleans()) if with_current is None else with_current):
        return heat, topology, None
    rows = [rng.permutation(np.arange(topology.slots) % experts) for _ in range(layers)]
    return heat, topology, iso.Placement(np.stack(rows), experts)


def twice(row_P, ranks):
    return sum(len(rank) - len(set(rank)) for rank in row_P.reshape(ranks, -1).tolist())


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from(POLICIES), st.sampled_from(["balanced", "even"]))
def test_what_every_plan_holds(problem, policy, shares):
    heat, topology, current = problem
    plan = iso.plan(heat, topology, current, policy=policy, shares=shares)
    placed_LP = plan.placement.slot_to_expert
    assert (plan.placement.replicas_LE >= 1).all()
    assert plan.shares == pytest.approx(np.clip(plan.shares, 0, 1))
    assert expert_sums(plan.placement, plan.shares) == pytest.approx(np.ones(heat.shape))
    load_LG = rank_loads(heat, plan.placement, plan.shares, topology)
    assert (plan.imbalance == iso.layer_imbalance(load_LG)).all()
    assert (plan.imbalance >= plan.bound - 1e-7).all()
    if current is None:
        assert plan.moves == ()
        assert sum(twice(row_P, topology.ranks) for row_P in placed_LP) == 0
        return
    changed = np.argwhere(placed_LP != current.slot_to_expert)
    assert [(m.layer, m.slot) for m in plan.moves] == [tuple(each) for each in changed.tolist()]
    assert all(placed_LP[m.layer, m.slot] == m.expert for m in plan.moves)
    for before_P, after_P in zip(current.slot_to_expert, placed_LP, strict=True):
        assert twice(after_P, topology.ranks) <= max(twice(before_P, topology.ranks), 0)


@settings(max_examples=80, deadline=None)
@given(problems(with_current=True), st.integers(0, 6), st.sampled_from(POLICIES))
def test_budgets_are_kept_in_moves_and_in_bytes(problem, budget, policy):
    heat, topology, current = problem
    plan = iso.plan(heat, topology, current, policy=policy, max_moves=budget)
    assert len(plan.moves) <= budget
    same = iso.plan(heat, topology, current, policy=policy, max_bytes=7 * budget + 6, bytes_per_expert=7)
    assert same.to_bytes() == plan.to_bytes()


@settings(max_examples=80, deadline=None)
@given(problems(with_current=True), st.floats(1, 1.5))
def test_incremental_changes_only_layers_above_the_target_and_never_for_the_worse(problem, target):
    heat, topology, current = problem
    as_is = iso.plan(heat, topology, current, policy="static")
    plan = iso.plan(heat, topology, current, max_imbalance=target)
    assert (plan.imbalance <= as_is.imbalance + 1e-6).all()
    moved = {move.layer for move in plan.moves}
    assert all(as_is.imbalance[layer] > target for layer in moved)


def big_problem():
    rng = np.random.default_rng(7)
    heat = rng.lognormal(0, 0.7, (4, 64))
    topology = iso.Topology.for_model(experts=64, redundant=16, ranks=16)
    return heat, topology, iso.plan(rng.permuted(heat, axis=1), topology).placement


def test_the_same_bytes_in_threads():
    heat, topology, current = big_problem()
    expected = iso.plan(heat, topology, current).to_bytes()
    with ThreadPoolExecutor(4) as pool:
        plans = [pool.submit(iso.plan, heat, topology, current) for _ in range(8)]
        assert {each.result().to_bytes() for each in plans} == {expected}


@pytest.mark.parametrize("with_current", [False, True])
def test_the_same_bytes_with_any_number_of_threads(with_current):
    heat, topology, current = big_problem()
    requests = [
        PlanRequest(heat, topology, current if with_current else None, threads=threads)
        for threads in (1, 2, 5)
    ]
    assert len({make_plan(request).to_bytes() for request in requests}) == 1


def test_threads_below_one_are_refused():
    with pytest.raises(ValueError, match=r"threads=0 is below 1"):
        PlanRequest(np.ones((1, 4)), TOPOLOGY, threads=0)


def plans_in_hex():
    """What plans of several kinds are made of, as one number."""
    heat, topology, current = big_problem()
    kinds = ({}, {"shares": "even"}, {"engine": "sglang"}, {"policy": "swift"}, {"policy": "deepseek"})
    plans = [iso.plan(heat, topology, current, **kind) for kind in kinds]
    return hashlib.sha256(b"".join(plan.to_bytes() for plan in plans)).hexdigest()


def test_the_same_bytes_in_processes_whose_cpu_has_no_vector_features():
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    present = " ".join(name for name in __cpu_dispatch__ if __cpu_features__[name])
    program = (
        "import sys; sys.path.insert(0, 'tests/planner'); import test_plan; print(test_plan.plans_in_hex())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env={**os.environ, "NPY_DISABLE_CPU_FEATURES": present, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == plans_in_hex()


def test_noise_on_a_plan_at_its_bound_moves_nothing():
    heat, topology, _ = big_problem()
    current = iso.plan(heat, topology).placement
    for seed in range(5):
        noise = np.random.default_rng(seed).lognormal(0, 0.01, heat.shape)
        plan = iso.plan(heat * noise, topology, current)
        assert plan.moves == ()
        assert "nothing to move" in plan.reason


def test_a_large_change_moves_little():
    heat, topology, current = big_problem()
    plan = iso.plan(heat, topology, current, max_imbalance=1.03)
    scratch = iso.plan(heat, topology, current, policy="deepseek")
    assert (plan.imbalance <= 1.03).all()
    assert len(plan.moves) < len(scratch.moves) / 5


def test_rounding_is_no_reason_to_move():
    # Balanced perfectly by shares, up to the last bit.
    topology = iso.Topology(ranks=3, slots_per_rank=3)
    current = iso.Placement([[2, 1, 1, 0, 1, 0, 2, 0, 2]], 3)
    plan = iso.plan([[57.0, 64.0, 81.0]], topology, current, max_imbalance=1.0)
    assert plan.moves == ()


def test_layers_without_heat_stay_and_give_numbers():
    topology = iso.Topology(ranks=3, slots_per_rank=2)
    current = iso.Placement([[0, 1, 2, 3, 0, 1]] * 2, 4)
    nothing = iso.plan(np.zeros((2, 4)), topology, current)
    assert (nothing.moves, nothing.reason) == ((), "nothing to do: there is no heat")
    assert (nothing.imbalance == 1).all()
    half = iso.plan([[0, 0, 0, 0], [9, 1, 1, 1]], topology, current)
    assert {move.layer for move in half.moves} <= {1}
    assert np.isfinite(half.imbalance).all()
    assert half.shares[0].tolist() == current.even_shares()[0].tolist()


@pytest.mark.parametrize("engine", ["vllm", "sglang", "vllm-ascend"])
def test_layers_without_heat_stay_for_every_engine(engine):
    topology = iso.Topology(ranks=3, slots_per_rank=2)
    current = iso.Placement([[0, 1, 2, 3, 0, 1]] * 2, 4)
    nothing = iso.plan(np.zeros((2, 4)), topology, current, engine=engine)
    assert (nothing.moves, nothing.imbalance.tolist()) == ((), [1, 1])
    half = iso.plan([[0, 0, 0, 0], [9, 1, 1, 1]], topology, current, engine=engine, max_imbalance=1.0)
    assert {move.layer for move in half.moves} <= {1}


def test_a_window_keeps_its_layer_numbers_and_engines_their_rule():
    heat_LE = np.array([[5, 1, 1, 1], [1, 1, 1, 5]])
    window = iso.HeatWindow(heat_LE[None, None], np.zeros((2, 2, 3), int), (0, 8), (8,), (3, 5))
    topology = iso.Topology(ranks=2, slots_per_rank=3)
    plan = iso.plan(window, topology)
    assert plan.layer_ids == (3, 5)
    even = iso.plan(window, topology, engine="vllm")
    assert (even.shares == even.placement.even_shares()).all()
    assert iso.plan(window, topology, engine="isotherm").to_bytes() == plan.to_bytes()


TOPOLOGY = iso.Topology(ranks=2, slots_per_rank=2)
HEAT = [[1.0, 2.0, 3.0]]
BAD = {
    "layer 0, expert 1: heat -2.0 must be finite": {"heat": [[1.0, -2.0, 3.0]]},
    "layer 0, expert 2: heat nan must be finite": {"heat": [[1.0, 2.0, np.nan]]},
    "layer 0, expert 0: heat inf must be finite": {"heat": [[np.inf, 2.0, 1.0]]},
    "heat has shape (0, 3): give [layers, experts]": {"heat": np.zeros((0, 3))},
    "heat has shape (3,): give [layers, experts]": {"heat": [1.0, 2.0, 3.0]},
    "heat has dtype <U1: give numbers": {"heat": [["a"]]},
    "4 slots hold fewer than experts=5": {"heat": [[1.0] * 5]},
    "layer 0: experts [2] have no slot": {"current": [[0, 1, 0, 1]]},
    "current holds 3 experts in (2, 4)": {"current": [[0, 1, 2, 1]] * 2},
    "max_moves=3 without a current placement": {"max_moves": 3},
    "max_moves=-1 is negative": {"max_moves": -1},
    "max_bytes=9 and bytes_per_expert=None go together": {"max_bytes": 9},
    "bytes_per_expert=0 not below 1": {"max_bytes": 9, "bytes_per_expert": 0},
    "engine='hal' is unknown: choose one of isotherm, vllm": {"engine": "hal"},
    "engine='vllm' splits an expert's tokens by a rule": {"engine": "vllm", "shares": "balanced"},
    "shares='odd' is unknown": {"shares": "odd"},
    "max_imbalance=0.9 is below 1": {"max_imbalance": 0.9, "current": [[0, 1, 2, 1]]},
    "groups=2 do not divide experts=3": {"groups": 2},
    "policy 'incremental' does not keep groups": {"groups": 3},
    "groups=3 do not divide over nodes=2": {
        "groups": 3,
        "policy": "deepseek",
        "topology": iso.Topology(ranks=2, slots_per_rank=2, nodes=2),
    },
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_names_value_and_rule(message):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is what is tested
        iso.plan(**{"heat": HEAT, "topology": TOPOLOGY, **BAD[message]})
    assert message in str(error.value)
