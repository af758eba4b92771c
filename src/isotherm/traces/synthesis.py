"""Heat that nobody measured, calibrated to heat that somebody did.

Each expert of a layer has exp(N(0, sigma)) of it, or its place of a measured rank profile; each kind of text
(*domain*) and each kind of token hands the places out in another order. Steps are noisier than independent
tokens, since the tokens of a text resemble each other: counts are multinomial with a sample that is smaller
than the number of tokens. Source of the figures: heat of DeepSeek-V3 served in public (Gini .32 to .37,
hottest 5.6 to 6.5 times the mean, sigma .56 to .66, prefill beside decode a cosine of .83 to .87), and a
sample of 4,000 a layer and step, which repeats what was published of chat within 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args, overload

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.topology import MoEShape
from isotherm.traces.header import HeatHeader
from isotherm.traces.profiles import cap_parts, log_normal_profile, related_heats, shaped_profile
from isotherm.traces.trace import HeatTrace
from isotherm.window import KINDS, HeatWindow

Scenario: TypeAlias = Literal["stationary", "abrupt", "gradual", "alternating", "interleaved"]
"""How traffic changes. stationary: one domain. abrupt: one domain after another, in equal spans. gradual:
each fades into the next. alternating: another domain every ``period`` windows. interleaved: one domain, and
every ``period`` windows the parts of prefill and decode are exchanged."""

_ONE_DOMAIN = ("stationary", "interleaved")


@dataclass(frozen=True)
class HeatSpec:
    """What heat to make.

    Raises:
        ValueError: a number out of its range; the message names it.
    """

    layers: int = 58
    """MoE layers."""
    experts: int = 256
    """Experts of a layer."""
    top_k: int = 8
    """Experts that a token picks."""
    windows: int = 64
    """How many windows to make."""
    window_steps: int = 256
    """Steps in a window."""
    slices: int = 2
    """Slices in a window."""
    tokens_per_step: int = 8192
    """Tokens in a step, over all ranks."""
    scenario: Scenario = "abrupt"
    """How traffic changes: not; from one domain to the next at once, or gradually; to and fro every `period`
    windows; or prefill and decode in turn every `period` windows."""
    domains: int = 2
    """Kinds of text, each with heat of its own, in scenarios where the text changes."""
    period: int = 8
    """Windows until the next change, where traffic goes to and fro."""
    cosine: float = 0.85
    """How alike the heats of two domains are; mean over layers."""
    kind_cosine: float = 0.85
    """How alike the heats of prefill and decode are; mean over layers."""
    decode_share: float = 0.25
    """The part of tokens that are decode tokens."""
    sigma: float = 0.6
    """Of log-normal heat; real models have .56 to .82."""
    gini: float | None = None
    """With max_over_mean: the Gini coefficient of every layer, instead of sigma."""
    max_over_mean: float | None = None
    """With gini: the hottest expert of every layer over the mean."""
    effective_sample: int = 4000
    """Independent choices of experts per layer and step that vary as much as the tokens' choices do."""
    seed: int = 0
    """Equal specs make equal heat, on one version of numpy."""

    def __post_init__(self) -> None:
        MoEShape(self.layers, self.experts, self.top_k)
        for name in ("windows", "window_steps", "slices", "tokens_per_step", "domains", "period",
                     "effective_sample"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is below 1: give a positive number")
        if self.window_steps % self.slices:
            raise ValueError(f"window_steps={self.window_steps} does not divide into slices={self.slices}")
        for name in ("cosine", "kind_cosine", "decode_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to 1")
        if self.scenario not in get_args(Scenario):
            raise ValueError(f"scenario={self.scenario!r}: choose one of {', '.join(get_args(Scenario))}")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is negative: give 0 or more")
        self._check_profile()

    def _check_profile(self) -> None:
        if not 0 <= self.sigma <= 4:
            raise ValueError(f"sigma={self.sigma} must be from 0 (all experts alike) to 4")
        if (self.gini is None) != (self.max_over_mean is None):
            raise ValueError(
                f"gini={self.gini} and max_over_mean={self.max_over_mean} go together: give both, or sigma"
            )
        if self.gini is not None and not 0 < self.gini < 1:
            raise ValueError(f"gini={self.gini} must be between 0 and 1")
        if self.max_over_mean is not None and not 1 < self.max_over_mean < self.experts / self.top_k:
            raise ValueError(
                f"max_over_mean={self.max_over_mean} must be between 1 and experts / top_k = "
                f"{self.experts / self.top_k:g}, which every token would bring"
            )

    @property
    def seen_domains(self) -> int:
        """Domains that the scenario shows."""
        return 1 if self.scenario in _ONE_DOMAIN else self.domains

    @property
    def slice_steps(self) -> int:
        return self.window_steps // self.slices

    @property
    def kind_shares(self) -> tuple[float, float]:
        """The parts of prefill and decode, where they are not exchanged."""
        return 1 - self.decode_share, self.decode_share

    def domain_parts(self, moment: float) -> FloatArray:
        """How much of the traffic each domain has, float64 [seen domains]; ``moment`` counts windows from the
        beginning."""
        parts_D = np.zeros(self.seen_domains)
        if self.scenario == "abrupt":
            parts_D[int(moment * self.domains / self.windows)] = 1
        elif self.scenario == "alternating":
            parts_D[int(moment / self.period) % self.domains] = 1
        elif self.scenario == "gradual" and self.domains > 1:
            place = moment / self.windows * (self.domains - 1)
            before = int(place)
            parts_D[before], parts_D[before + 1] = before + 1 - place, place - before
        else:
            parts_D[0] = 1
        return parts_D

    def kind_parts(self, moment: float) -> FloatArray:
        """How much of the traffic is prefill and decode, float64 [2]."""
        turned = self.scenario == "interleaved" and int(moment / self.period) % 2
        return np.array(self.kind_shares[::-1] if turned else self.kind_shares)


def synthesize(
    spec: HeatSpec,
    *,
    like: Int64Array | FloatArray | None = None,
    layer_ids: tuple[int, ...] | None = None,
    model_layers: int | None = None,
) -> HeatTrace:
    """Heat as ``spec`` says: each window is made when it is asked for, the same each time.

    Args:
        like: measured heat [layers, experts]: layer ``i`` gets the rank profile of its row ``i``, counted
            round, instead of one that ``spec`` describes.
        layer_ids: the model's own numbers of the layers; None: from 0.
        model_layers: all layers of the model, dense ones too; None: not said.

    Raises:
        ValueError: no heat is like this: domains that are to be less alike than unrelated ones, say; or
            ``like`` has other experts, or a layer without heat.
    """
    rng = np.random.default_rng(spec.seed)
    profile_LE = cap_parts(_profiles(spec, like, rng), spec.top_k)
    heats_DKLE = related_heats(profile_LE, spec.seen_domains, len(KINDS), spec.cosine, spec.kind_cosine, rng)
    header = HeatHeader(
        layer_ids=MoEShape(spec.layers, spec.experts, spec.top_k, layer_ids).ids,
        experts=spec.experts,
        top_k=spec.top_k,
        model_layers=model_layers,
        model="synthetic",
    )
    return HeatTrace(header, SyntheticWindows(spec, header, heats_DKLE))


@dataclass(frozen=True, eq=False)
class SyntheticWindows(Sequence[HeatWindow]):
    """Windows that are made when they are asked for. ``heats_DKLE``: parts of 1 in each layer."""

    spec: HeatSpec
    header: HeatHeader
    heats_DKLE: FloatArray

    def __len__(self) -> int:
        return self.spec.windows

    @overload
    def __getitem__(self, index: int) -> HeatWindow: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[HeatWindow]: ...
    def __getitem__(self, index: int | slice) -> HeatWindow | Sequence[HeatWindow]:
        if isinstance(index, slice):
            return [self._window(number) for number in range(len(self))[index]]
        return self._window(range(len(self))[index])

    def _window(self, number: int) -> HeatWindow:
        spec = self.spec
        rng = np.random.default_rng((spec.seed, 1, number))
        slices = [self._slice(number + (part + 0.5) / spec.slices, rng) for part in range(spec.slices)]
        start = number * spec.window_steps
        return HeatWindow(
            heat_KSLE=np.stack([heat_KLE for heat_KLE, _ in slices], axis=1),
            slot_load_LGS=None,
            slice_steps=tuple(range(start, start + spec.window_steps + 1, spec.slice_steps)),
            tokens_K=np.sum([tokens_K for _, tokens_K in slices], axis=0),
            layer_ids=self.header.layer_ids,
        )

    def _slice(self, moment: float, rng: np.random.Generator) -> tuple[Int64Array, Int64Array]:
        """Heat [kinds, layers, experts] and tokens [kinds] of one slice."""
        spec = self.spec
        mixed_KLE = np.tensordot(spec.domain_parts(moment), self.heats_DKLE, axes=1)
        tokens = spec.slice_steps * spec.tokens_per_step
        prefill = round(tokens * float(spec.kind_parts(moment)[0]))
        tokens_K = np.array([prefill, tokens - prefill], np.int64)
        heat_KLE = np.stack(
            [self._drawn(heat_LE, int(count), rng) for heat_LE, count in zip(mixed_KLE, tokens_K)]
        )
        return heat_KLE, tokens_K

    def _drawn(self, heat_LE: FloatArray, tokens: int, rng: np.random.Generator) -> Int64Array:
        """Counts int64 [layers, experts], ``tokens * top_k`` in each layer: a sample, blown up."""
        spec = self.spec
        pairs = tokens * spec.top_k
        of_all = tokens / (spec.slice_steps * spec.tokens_per_step)
        sample = min(pairs, math.ceil(spec.effective_sample * spec.slice_steps * of_all))
        if not sample:
            return np.zeros(heat_LE.shape, np.int64)
        drawn_LE = rng.multinomial(sample, heat_LE / heat_LE.sum(axis=1, keepdims=True))
        # Borders between experts are rounded, not counts: their sum stays what it is.
        borders_LE = np.rint(np.cumsum(drawn_LE, axis=1) * (pairs / sample)).astype(np.int64)
        counts_LE: Int64Array = np.diff(borders_LE, axis=1, prepend=0)
        return counts_LE


def _profiles(spec: HeatSpec, like: Int64Array | FloatArray | None, rng: np.random.Generator) -> FloatArray:
    """float64 [layers, experts], each row ascending."""
    if like is None:
        if spec.gini is None or spec.max_over_mean is None:
            return log_normal_profile(spec.layers, spec.experts, spec.sigma, rng)
        return np.tile(shaped_profile(spec.experts, spec.gini, spec.max_over_mean), (spec.layers, 1))
    like_LE = np.sort(np.asarray(like, np.float64), axis=-1)
    if like_LE.ndim != 2 or like_LE.shape[1] != spec.experts or not like_LE.any(axis=1).all():
        raise ValueError(
            f"like has shape {like_LE.shape}: give [layers, {spec.experts} experts], no layer without heat"
        )
    return like_LE[np.arange(spec.layers) % len(like_LE)]
