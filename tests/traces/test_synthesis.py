"""Heat that was made has the properties that were asked for, seen in the heat itself."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isotherm.traces.files import read_heat, write_heat
from isotherm.traces.profiles import cap_parts, mean_cosine, related_heats, shaped_profile
from isotherm.traces.skew import cosines, gini
from isotherm.traces.synthesis import HeatSpec, synthesize
from isotherm.traces.synthesis_check import measure_synthetic

SMALL = HeatSpec(layers=4, experts=64, top_k=4, windows=12, window_steps=64, tokens_per_step=2000)


def changed(**values) -> HeatSpec:
    return HeatSpec(**{**SMALL.__dict__, **values})


def plain_cosine(one_LE: np.ndarray, other_LE: np.ndarray) -> float:
    return float(cosines(one_LE.astype(np.int64), other_LE.astype(np.int64)).mean())


@pytest.mark.parametrize(("wanted_gini", "hottest"), [(0.35, 5.6), (0.32, 8.1), (0.45, 5.6), (0.3, 2.6)])
def test_a_profile_has_the_gini_and_the_hottest_that_were_asked_for(
    wanted_gini: float, hottest: float
) -> None:
    profile_E = shaped_profile(256, wanted_gini, hottest)
    assert (np.diff(profile_E) >= 0).all()
    assert np.abs(profile_E[:, None] - profile_E).mean() / (2 * profile_E.mean()) == pytest.approx(
        wanted_gini, rel=0.01
    )
    assert profile_E[-1] / profile_E.mean() == pytest.approx(hottest, rel=0.01)


def test_a_profile_that_cannot_be_is_told_with_what_could() -> None:
    with pytest.raises(
        ValueError, match=r"gini=0\.1 and max_over_mean=100: the nearest has .*goes with 1\.\d"
    ):
        shaped_profile(128, 0.1, 100)


@given(st.lists(st.integers(1, 1000), min_size=4, max_size=12), st.integers(1, 4))
def test_no_expert_is_picked_by_more_than_all_tokens(heat: list[int], top_k: int) -> None:
    parts_E = cap_parts(np.array([heat], float), top_k)[0]
    assert parts_E.sum() == pytest.approx(1)
    assert parts_E.max() <= 1 / top_k + 1e-9
    order = np.argsort(heat, kind="stable")
    assert (np.diff(parts_E[order]) >= -1e-12).all()
    if max(heat) * top_k <= sum(heat):
        assert parts_E == pytest.approx(np.array(heat) / sum(heat))


def test_domains_and_kinds_are_as_alike_as_asked_and_keep_the_profile() -> None:
    profile_LE = np.sort(np.exp(np.random.default_rng(0).normal(0, 0.8, (6, 128))), axis=1)
    heats_DKLE = related_heats(profile_LE, 3, 2, 0.75, 0.9, np.random.default_rng(1))
    assert (np.sort(heats_DKLE, axis=-1) == profile_LE).all()
    big = (heats_DKLE * 1e9).astype(np.int64)
    domains = [plain_cosine(big[a, k], big[b, k]) for a, b in combinations(range(3), 2) for k in range(2)]
    kinds = [plain_cosine(big[d, 0], big[d, 1]) for d in range(3)]
    assert np.mean(domains) == pytest.approx(0.75, abs=0.005) == mean_cosine(heats_DKLE, axis=0)
    assert np.mean(kinds) == pytest.approx(0.9, abs=0.005)
    with pytest.raises(ValueError, match=r"cosine=0\.1 cannot be reached: unrelated orders .* have 0\.\d+"):
        related_heats(profile_LE, 3, 2, 0.1, 0.9, np.random.default_rng(1))


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["stationary", "abrupt", "gradual", "alternating", "interleaved"]),
    st.integers(1, 3), st.integers(1, 4), st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 50),
)  # fmt: skip
def test_every_token_picks_top_k_and_a_window_is_the_same_each_time(
    scenario, domains: int, slices: int, decode_share: float, tokens: int
) -> None:
    spec = changed(
        scenario=scenario, domains=domains, slices=slices, window_steps=12, decode_share=decode_share,
        tokens_per_step=tokens, windows=5, cosine=1.0, kind_cosine=1.0,
    )  # fmt: skip
    trace = synthesize(spec)
    windows = list(trace)
    for number, window in enumerate(windows):
        assert window.slice_steps == tuple(range(12 * number, 12 * number + 13, 12 // slices))
        assert window.tokens_K.sum() == 12 * tokens
        assert (window.heat_KSLE.sum(axis=(1, 3)) == 4 * window.tokens_K[:, None]).all()
        trace.header.check_window(window)
        assert (trace[number - len(windows)].heat_KSLE == window.heat_KSLE).all()
    assert [window.start_step for window in trace[1::2]] == [12, 36]
    assert (synthesize(changed(seed=1))[0].heat_KSLE != synthesize(changed(seed=2))[0].heat_KSLE).any()


def drift(spec: HeatSpec) -> list[float]:
    heats = [window.heat_LE for window in synthesize(spec)]
    return [plain_cosine(*pair) for pair in pairwise(heats)]


def test_traffic_changes_when_the_scenario_says_so() -> None:
    assert min(drift(changed(scenario="stationary"))) > 0.99
    abrupt = drift(changed(scenario="abrupt", domains=3))
    assert [window for window, cosine in enumerate(abrupt, 1) if cosine < 0.95] == [4, 8]
    alternating = drift(changed(scenario="alternating", period=3))
    assert [window for window, cosine in enumerate(alternating, 1) if cosine < 0.95] == [3, 6, 9]
    windows = list(synthesize(changed(scenario="gradual", cosine=0.8)))
    gone = [plain_cosine(windows[0].heat_LE, window.heat_LE) for window in windows]
    assert min(drift(changed(scenario="gradual", cosine=0.8))) > 0.98
    assert gone[-1] < 0.88
    assert (np.diff(gone) < 0.005).all()
    parts = [window.tokens_K[1] / window.tokens_K.sum() for window in synthesize(
        changed(scenario="interleaved", period=2, decode_share=0.2, windows=6))]  # fmt: skip
    assert parts == pytest.approx([0.2, 0.2, 0.8, 0.8, 0.2, 0.2])


def test_noise_is_that_of_the_effective_sample() -> None:
    """Against the variance over many windows, expert by expert, which the report does not compute."""
    spec = changed(scenario="stationary", windows=200, slices=1, window_steps=1, tokens_per_step=5000,
                   decode_share=0.0, effective_sample=500)  # fmt: skip
    parts_NLE = np.array([window.heat_LE for window in synthesize(spec)]) / (4 * 5000)
    mean_LE = parts_NLE.mean(axis=0)
    sample = (mean_LE * (1 - mean_LE)).sum() / parts_NLE.var(axis=0).sum()
    assert sample == pytest.approx(500, rel=0.05)
    made = {each.name: each for each in measure_synthetic(spec, synthesize(spec))}
    assert made["independent choices per layer and step"].made == pytest.approx(500, rel=0.1)


def test_a_report_compares_what_was_asked_with_what_was_made() -> None:
    spec = changed(experts=256, layers=8, tokens_per_step=8000, cosine=0.8, gini=0.36, max_over_mean=6.0)
    made = {each.name: each for each in measure_synthetic(spec, synthesize(spec))}
    assert [each.asked for each in made.values()] == [0.36, 6.0, None, 0.8, 0.85, 0.25, 4000]
    for each in made.values():
        assert each.asked is None or each.made == pytest.approx(each.asked, rel=0.03), each
    alone = {each.name: each.made for each in measure_synthetic(changed(decode_share=0.0), synthesize(
        changed(decode_share=0.0, scenario="stationary")))}  # fmt: skip
    assert alone["cosine of prefill and decode"] is None


def test_a_measured_profile_is_kept_layer_by_layer(tmp_path) -> None:
    like_LE = np.random.default_rng(5).integers(1, 5000, (3, 64))
    spec = changed(layers=6, scenario="stationary", kind_cosine=1.0, effective_sample=10**9)
    trace = synthesize(spec, like=like_LE, layer_ids=(3, 4, 5, 6, 7, 9), model_layers=10)
    write_heat(trace, tmp_path / "some.heat")
    read = read_heat(tmp_path / "some.heat")
    assert (read.layer_ids, read.header.model_layers) == ((3, 4, 5, 6, 7, 9), 10)
    made_LE = np.sort(read.heat_LE, axis=1)
    for row, made_E in enumerate(made_LE):
        wanted_E = np.sort(like_LE[row % 3])
        assert made_E / made_E.sum() == pytest.approx(wanted_E / wanted_E.sum(), rel=0.05, abs=1e-4)
    assert gini(made_LE)[:3] == pytest.approx(gini(like_LE), abs=0.01)
    for wrong in (np.ones((3, 63)), np.zeros((3, 64)), np.ones(64)):
        with pytest.raises(ValueError, match="like has shape"):
            synthesize(spec, like=wrong)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"windows": 0}, "windows=0"),
        ({"slices": 5}, "window_steps=64 does not divide"),
        ({"cosine": 1.5}, r"cosine=1\.5"),
        ({"scenario": "odd"}, "choose one of stationary"),
        ({"gini": 0.3}, "go together"),
        ({"seed": -1}, "seed=-1"),
        ({"gini": 0.3, "max_over_mean": 40}, "experts / top_k = 16"),
        ({"top_k": 65}, "top_k=65"),
        ({"sigma": -1}, "sigma=-1"),
    ],
)
def test_what_cannot_be_made_is_told(values: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        changed(**values)
