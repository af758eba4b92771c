"""Redundancy advice: what each number of slots reaches, which layers need any, and which number is named."""

import numpy as np
import pytest

import isotherm as iso
from isotherm.planner.advice import advise

# A perfect split over four ranks exists without redundancy; one expert with more than a rank's part; flat.
PAIRS = [8, 8, 8, 8, 2, 2, 2, 2]
ONE_HOT = [40, 2, 2, 2, 2, 2, 2, 2]
FLAT = [3] * 8


def test_a_layer_needs_what_its_hottest_expert_needs():
    advice = advise([PAIRS, ONE_HOT, FLAT], 4, bytes_per_expert=10, layer_ids=(3, 5, 8))
    assert [(row.redundant, row.slots_per_rank) for row in advice.rows] == [(0, 2), (4, 3), (8, 4), (16, 6)]
    assert [row.bytes_per_rank for row in advice.rows] == [60, 90, 120, 180]
    assert advice.needed_L.tolist() == [0, 4, 0]
    assert [row.layers_within for row in advice.rows] == [2, 3, 3, 3]
    # Without a second slot the hot expert stands beside one of the others: 42 of a mean of 13.5.
    assert advice.imbalance_XL[0] == pytest.approx([1, 42 / 13.5, 1])
    assert advice.rows[0].imbalance.worst_layer == 5
    assert advice.redundant == 4
    assert (
        advice.reason
        == "4 redundant slots: imbalance 1.000, within the target of 1.030; fewer do not reach it"
    )


def test_none_where_none_is_needed():
    advice = advise([PAIRS, FLAT], 4, bytes_per_expert=1)
    assert advice.redundant == 0
    assert advice.reason == "0 redundant slots: imbalance 1.000, within the target of 1.030"


def test_even_shares_stop_where_more_slots_stop_paying():
    rng = np.random.default_rng(4)
    heat = rng.lognormal(0, 1.2, (3, 16))
    advice = advise(heat, 8, bytes_per_expert=1, shares="even", target=1.0, least_gain=0.02)
    overall = [row.imbalance.overall for row in advice.rows]
    index = [row.redundant for row in advice.rows].index(advice.redundant)
    assert 0 < index < len(overall) - 1
    gains = -np.diff(overall)
    assert (gains[:index] >= 0.02).all()
    assert gains[index] < 0.02
    assert f"would lower it by {gains[index]:.3f} only" in advice.reason
    assert (advice.needed_L == -1).all()


def test_slots_are_whole_per_rank_and_no_rank_has_more_than_there_are_experts():
    advice = advise(np.arange(1, 7)[None], 4, bytes_per_expert=1, target=1.0, least_gain=0.0)
    assert [(row.redundant, row.slots_per_rank) for row in advice.rows] == [(2, 2), (6, 3), (10, 4), (18, 6)]
    small = advise([[2.0, 1.0]], 2, bytes_per_expert=1)
    assert [row.slots_per_rank for row in small.rows] == [1, 2]


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="bytes_per_expert=-1 is negative"):
        advise([FLAT], 4, bytes_per_expert=-1)
    with pytest.raises(ValueError, match="layer 0, expert 1: heat nan"):
        advise([[1.0, np.nan]], 2, bytes_per_expert=1)
    with pytest.raises(ValueError, match="ranks=6 do not divide over nodes=4"):
        advise([FLAT], 6, bytes_per_expert=1, nodes=4)


def test_a_layer_without_heat_needs_nothing():
    advice = advise([[0.0] * 8, ONE_HOT], 4, bytes_per_expert=1)
    assert advice.needed_L.tolist() == [0, 4]
    assert isinstance(advice.rows[0].imbalance, iso.ImbalanceSummary)
