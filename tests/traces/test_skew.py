"""What inspect says of heat, against plain ways to compute it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import HEADER, a_window

from isotherm.traces.skew import cosines, gini, measure_skew
from isotherm.window import ImbalanceSummary


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=12))
def test_gini_is_half_the_mean_difference_over_the_mean(heat: list[int]) -> None:
    heat_E = np.array(heat)
    difference = np.abs(heat_E[:, None] - heat_E[None]).mean()
    expected = difference / (2 * heat_E.mean()) if heat_E.any() else 0.0
    assert gini(heat_E[None])[0] == pytest.approx(expected)


def test_cosines_of_like_unlike_and_no_heat() -> None:
    one_LE = np.array([[1, 2, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [3, 4, 0]])
    other_LE = np.array([[2, 4, 0], [0, 5, 0], [0, 0, 0], [1, 0, 0], [4, 3, 0]])
    assert cosines(one_LE, other_LE) == pytest.approx([1, 0, 1, 0, 24 / 25])


def test_a_report_of_windows_is_that_of_their_sums() -> None:
    windows = [a_window(number) for number in range(4)]
    report = measure_skew(HEADER, iter(windows), top=3)
    heat_LE = sum(window.heat_LE for window in windows)
    assert (report.windows, report.first_step, report.last_step) == (4, 0, 32)
    for layer, row_E in zip(report.layers, heat_LE, strict=True):
        assert layer.heat == row_E.sum()
        assert layer.max_over_mean == pytest.approx(row_E.max() / row_E.mean())
        assert layer.top_share == pytest.approx(sorted(row_E)[-3:] @ np.ones(3) / row_E.sum())
        assert layer.gini == pytest.approx(gini(row_E[None])[0])
    assert [layer.layer for layer in report.layers] == [1, 2, 5]
    assert [drift.window for drift in report.drift] == [1, 2, 3]
    between_L = cosines(windows[1].heat_LE, windows[2].heat_LE)
    assert report.drift[1].cosine == pytest.approx(between_L.mean())
    assert report.drift[1].least_layer == HEADER.layer_ids[between_L.argmin()]
    load_LG = sum(window.load_LG for window in windows)
    assert report.rank_imbalance == ImbalanceSummary.of(load_LG, HEADER.layer_ids)
    assert report.heat_per_kind == {
        kind: sum(int(window.heat_KSLE[index].sum()) for window in windows)
        for index, kind in enumerate(("prefill", "decode"))
    }


def test_kinds_are_compared_and_one_without_heat_is_not() -> None:
    window = a_window()
    report = measure_skew(HEADER, [window], top=8)
    (pair,) = report.kind_pairs
    prefill_LE, decode_LE = window.heat_KSLE.sum(axis=1)
    assert pair.cosine == pytest.approx(cosines(prefill_LE, decode_LE).mean())
    assert pair.top_overlap == 1.0
    cold = replace(window, heat_KSLE=window.heat_KSLE * [[[[1]]], [[[0]]]], slot_load_LGS=None)
    report = measure_skew(HEADER, [window, cold])
    assert report.rank_imbalance is None
    assert measure_skew(HEADER, [cold]).kind_pairs[0].cosine is None


def test_nothing_to_look_at_is_told() -> None:
    with pytest.raises(ValueError, match="no window to add up"):
        measure_skew(HEADER, [])
    few = replace(HEADER, experts=4, topology=None)
    assert measure_skew(few, [a_window(header=few)]).top == 4
    with pytest.raises(ValueError, match="top=9 must be from 1 to the 8 experts"):
        measure_skew(HEADER, [a_window()], top=9)
