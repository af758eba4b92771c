"""Plans in vLLM's terms: every slot filled, as few moved as the limit needs, whatever vLLM hands over."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isotherm.engines.vllm.placing import GAIN, place_experts
from isotherm.placement import Placement, rank_loads
from isotherm.planner import plan
from isotherm.topology import Topology
from isotherm.window import layer_imbalance

CLUSTERS = [Topology(ranks=2, slots_per_rank=3), Topology(ranks=4, slots_per_rank=3, nodes=2)]


def loads_of(topology: Topology, *, layers: int = 3, experts: int = 6, seed: int = 0) -> np.ndarray:
    skewed = np.exp(np.random.default_rng(seed).normal(0, 1, (layers, experts)))
    return (1000 * skewed).astype(np.int64)


def vllm_start(topology: Topology, experts: int, layers: int) -> np.ndarray:
    """vLLM's first placement: the experts in order, then the redundant ones from 0 on."""
    return np.tile(np.arange(topology.slots, dtype=np.int64) % experts, (layers, 1))


def imbalance_of(slots_LP: np.ndarray, load_LE: np.ndarray, topology: Topology) -> np.ndarray:
    placement = Placement(slots_LP, load_LE.shape[1])
    return layer_imbalance(rank_loads(load_LE, placement, placement.even_shares(), topology))


@st.composite
def handed_over(draw: st.DrawFn) -> tuple[np.ndarray, Topology, np.ndarray | None]:
    """Loads, ranks, and what slots hold: nothing known, all, some of them empty, or of other ranks."""
    topology = draw(st.sampled_from(CLUSTERS))
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    load_LE = np.array(
        draw(st.lists(st.integers(0, 50), min_size=layers * experts, max_size=layers * experts))
    ).reshape(layers, experts)
    slots = draw(st.sampled_from([0, topology.slots, topology.slots + 3, topology.slots - 3]))
    if not slots:
        return load_LE, topology, None
    held = draw(st.lists(st.integers(-1, experts - 1), min_size=layers * slots, max_size=layers * slots))
    return load_LE, topology, np.array(held).reshape(layers, slots)


@settings(max_examples=150, deadline=None)
@given(handed_over())
def test_every_slot_is_filled_and_every_expert_has_one(
    case: tuple[np.ndarray, Topology, np.ndarray | None],
) -> None:
    load_LE, topology, held_LP = case
    goal_LP = place_experts(load_LE, topology, held_LP)
    assert goal_LP.dtype == np.int64
    assert goal_LP.shape == (len(load_LE), topology.slots)
    assert goal_LP.min() >= 0
    Placement(goal_LP, load_LE.shape[1])  # raises where an expert has no slot
    again_LP = place_experts(load_LE.copy(), topology, None if held_LP is None else held_LP.copy())
    assert goal_LP.tobytes() == again_LP.tobytes()


def test_layers_within_the_limit_stay_and_others_are_brought_below_it() -> None:
    topology = CLUSTERS[1]
    load_LE = loads_of(topology)
    load_LE[1] = 500
    held_LP = vllm_start(topology, 6, 3)
    assert imbalance_of(held_LP, load_LE, topology)[1] == 1
    goal_LP = place_experts(load_LE, topology, held_LP, max_imbalance=1.1)
    before_L, after_L = (imbalance_of(each, load_LE, topology) for each in (held_LP, goal_LP))
    assert before_L[0] > 1.1
    assert before_L[2] > 1.1
    assert after_L[0] <= 1.1
    assert after_L[2] <= 1.1
    np.testing.assert_array_equal(goal_LP[1], held_LP[1])
    assert 0 < (goal_LP != held_LP).sum() < held_LP.size / 2


@pytest.mark.parametrize("load", [0, 7])
def test_equal_loads_say_nothing_and_nothing_moves(load: int) -> None:
    topology = CLUSTERS[0]
    held_LP = np.array([[0, 1, 2, 3, 3, 3]])  # uneven, were the loads taken for traffic
    assert imbalance_of(held_LP, np.ones((1, 4)), topology)[0] > 1.4
    goal_LP = place_experts(np.full((1, 4), load), topology, held_LP)
    np.testing.assert_array_equal(goal_LP, held_LP)


@pytest.mark.parametrize("load", [0, 7])
def test_ranks_that_joined_are_filled_even_before_any_traffic(load: int) -> None:
    topology = Topology(ranks=3, slots_per_rank=2)
    goal_LP = place_experts(np.full((1, 4), load), topology, np.array([[0, 1, 2, 3, -1, -1]]))
    np.testing.assert_array_equal(goal_LP, [[0, 1, 2, 3, 0, 1]])


def test_an_empty_slot_goes_to_the_expert_that_carries_most_and_is_not_on_the_rank() -> None:
    topology = Topology(ranks=3, slots_per_rank=2)
    held_LP = np.array([[0, 1, 2, 3, 0, -1]])
    goal_LP = place_experts(np.array([[100, 60, 10, 5]]), topology, held_LP, max_imbalance=9.0)
    np.testing.assert_array_equal(goal_LP, [[0, 1, 2, 3, 0, 1]])  # expert 0 is on that rank already


def test_a_layer_that_small_changes_cannot_help_is_placed_anew() -> None:
    """vLLM's first placement on 32 ranks leads the search into a dead end in some layers."""
    topology = Topology.for_model(experts=256, redundant=32, ranks=32)
    load_LE = np.concatenate([loads_of(topology, experts=256, seed=seed) for seed in (2, 9)])
    held_LP = vllm_start(topology, 256, len(load_LE))
    searched = plan(load_LE, topology, held_LP, engine="vllm", max_imbalance=1.03)
    anew_L = imbalance_of(place_experts(load_LE, topology), load_LE, topology)
    goal_LP = place_experts(load_LE, topology, held_LP)
    reached_L = searched.imbalance <= 1.03
    np.testing.assert_array_equal(goal_LP[reached_L], searched.placement.slot_to_expert[reached_L])
    most_L = np.where(reached_L, 1.03, anew_L / (1 - GAIN))
    assert (imbalance_of(goal_LP, load_LE, topology) <= most_L + 1e-9).all()


def test_what_stays_on_its_rank_keeps_its_slot_when_ranks_leave() -> None:
    """Two of four ranks leave, with the only slots of experts 6 and 7."""
    topology = Topology(ranks=2, slots_per_rank=4)
    held_LP = np.array([[3, 1, 2, 0, 5, 4, 0, 1, 6, 7, 6, 7, 6, 7, 6, 7]])
    load_LE = np.array([[40, 30, 30, 30, 30, 30, 30, 30]])
    goal_LP = place_experts(load_LE, topology, held_LP)
    kept = goal_LP == held_LP[:, :8]
    for rank in range(2):
        span = slice(4 * rank, 4 * rank + 4)
        stay = set(goal_LP[0, span]) & set(held_LP[0, span])
        assert kept[0, span].sum() == len(stay)
    assert kept.sum() >= 2


@pytest.mark.parametrize(
    ("load_LE", "said"),
    [([[1, -1]], "not negative"), ([[1.0, np.nan]], "finite"), ([1, 2], "shape"), ([[1] * 7], "7")],
)
def test_loads_that_cannot_be_are_refused(load_LE: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        place_experts(np.array(load_LE), CLUSTERS[0])
