"""How uneven the experts of a layer are, and who is hot where: rank profiles, and orders that resemble
each other as much as is asked.

A *rank profile* is the heat of a layer's experts in ascending order. Who takes which place of it is another
matter: each kind of text has an order of its own, and keeps the profile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import NormalDist

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.traces.skew import gini

_HALVINGS = 40
_PROFILE_TOLERANCE = 0.01
_COSINE_TOLERANCE = 0.01


def log_normal_profile(layers: int, experts: int, sigma: float, rng: np.random.Generator) -> FloatArray:
    """exp(N(0, sigma)), drawn for each expert of each layer; float64 [layers, experts], ascending."""
    profile_LE: FloatArray = np.sort(np.exp(sigma * rng.standard_normal((layers, experts))), axis=1)
    return profile_LE


def shaped_profile(experts: int, gini_wanted: float, max_over_mean: float) -> FloatArray:
    """A profile float64 [experts], ascending, with this Gini coefficient and this hottest over the mean.

    Log-normal in the middle, exp(s z) at the normal quantiles z; the hot half is stretched or flattened by
    exp(t z^2).

    Raises:
        ValueError: no profile of this family has both.
    """
    z_E = np.array([NormalDist().inv_cdf((rank + 0.5) / experts) for rank in range(experts)])

    def profile(stretch: float) -> FloatArray:
        scale = _bisect(lambda s: float(gini(_curve(z_E, s, stretch)[None])[0]), gini_wanted, 0.0, 8.0)
        return _curve(z_E, scale, stretch)

    stretch = _bisect(lambda t: _max_over_mean(profile(t)), max_over_mean, -1.0, 1.0)
    found_E = profile(stretch)
    found = float(gini(found_E[None])[0]), _max_over_mean(found_E)
    for name, is_, wanted in zip(("gini", "max_over_mean"), found, (gini_wanted, max_over_mean)):
        if abs(is_ - wanted) > _PROFILE_TOLERANCE * wanted:
            raise ValueError(
                f"no profile of {experts} experts has gini={gini_wanted} and max_over_mean={max_over_mean}: "
                f"the nearest has {name}={is_:.3f}; of log-normal heat a Gini of {gini_wanted} goes with "
                f"{_max_over_mean(profile(0.0)):.1f}"
            )
    return found_E


def cap_parts(profile_LE: FloatArray, top_k: int) -> FloatArray:
    """Each layer as parts of 1, none above ``1 / top_k``: a token picks an expert once. What is too much
    goes to the others in proportion."""
    parts_LE: FloatArray = profile_LE / profile_LE.sum(axis=1, keepdims=True)
    limit = 1.0 / top_k
    for _ in range(parts_LE.shape[1]):
        over_LE = parts_LE >= limit
        if not (parts_LE > limit + 1e-12).any():
            break
        left_L = 1.0 - limit * over_LE.sum(axis=1)
        under_L = np.where(over_LE, 0.0, parts_LE).sum(axis=1)
        scale_L = np.divide(left_L, under_L, out=np.ones_like(left_L), where=under_L > 0)
        parts_LE = np.where(over_LE, limit, parts_LE * scale_L[:, None])
    return parts_LE


def related_heats(
    profile_LE: FloatArray,
    domains: int,
    kinds: int,
    cosine: float,
    kind_cosine: float,
    rng: np.random.Generator,
) -> FloatArray:
    """A heat for each domain and kind of token, float64 [domains, kinds, layers, experts]: the same profile
    with its places taken in other orders.

    Two domains have ``cosine`` for one kind, two kinds ``kind_cosine`` in one domain; means over layers
    and pairs. Places are taken in the order of normal scores, whose correlations (a Gaussian copula, the
    product of one for domains and one for kinds) are found by bisection.

    Raises:
        ValueError: unrelated orders are already more alike than that: a flat profile is like any other.
    """
    layers, experts = profile_LE.shape
    sizes = ((1, 1), (domains, 1), (1, kinds), (domains, kinds))
    noise = [rng.standard_normal((*size, layers, experts)) for size in sizes]

    def heats(domain: float, kind: float) -> FloatArray:
        parts = (domain * kind, kind * (1 - domain), domain * (1 - kind), (1 - domain) * (1 - kind))
        scores_DKLE = sum(np.sqrt(part) * each for part, each in zip(parts, noise))
        out_DKLE = np.empty((domains, kinds, layers, experts))
        places_DKLE = np.argsort(scores_DKLE, axis=-1, kind="stable")
        np.put_along_axis(out_DKLE, places_DKLE, np.broadcast_to(profile_LE, out_DKLE.shape), axis=-1)
        return out_DKLE

    def alike(domain: float, kind: float, axis: int) -> float:
        return mean_cosine(heats(domain, kind), axis)

    domain = kind = 1.0
    for _ in range(2):  # each shifts the other a little, by the noise that both share
        if domains > 1:
            domain = _related(partial(alike, kind=kind, axis=0), cosine, "cosine")
        if kinds > 1:
            kind = _related(partial(alike, domain, axis=1), kind_cosine, "kind_cosine")
    return heats(domain, kind)


def mean_cosine(heats: FloatArray, axis: int) -> float:
    """The cosine over experts, the last axis, of every two entries along ``axis``; the mean of all."""
    unit = np.moveaxis(heats / np.linalg.norm(heats, axis=-1, keepdims=True), axis, 0)
    pairs = [(i, j) for i in range(len(unit)) for j in range(i)]
    return float(np.mean([(unit[i] * unit[j]).sum(axis=-1) for i, j in pairs]))


def _related(cosine_at: Callable[[float], float], wanted: float, name: str) -> float:
    least = cosine_at(0.0)
    if wanted < least - _COSINE_TOLERANCE:
        raise ValueError(
            f"{name}={wanted} cannot be reached: unrelated orders of this profile have {least:.2f}; give "
            "that or more, or a more uneven profile"
        )
    return _bisect(cosine_at, wanted, 0.0, 1.0)


def _bisect(value_at: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where an ascending function reaches ``wanted``, or the end that is nearer."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if value_at(middle) < wanted else (low, middle)
    return (low + high) / 2


def _curve(z_E: FloatArray, scale: float, stretch: float) -> FloatArray:
    log_E = scale * z_E + stretch * np.maximum(z_E, 0.0) ** 2
    curve_E: FloatArray = np.sort(np.exp(log_E - log_E.max()))
    return curve_E


def _max_over_mean(profile_E: FloatArray) -> float:
    return float(profile_E.max() / profile_E.mean())
