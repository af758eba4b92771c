"""Swift balancing: redundancy laid out anew, then a bounded number of exchanges with the hottest rank."""

from __future__ import annotations

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.placement import EMPTY
from isotherm.planner.request import PlanRequest

EXCHANGES_PER_RANK = 0.5
"""At most so many exchanges in a layer, for each rank."""
LEAST_GAIN = 0.01
"""An exchange, and in the end the whole layer, must lower the hottest rank by this part of the mean."""


def place_swift(request: PlanRequest) -> Int64Array:
    """Slots to experts, int64 [layers, slots], from what the slots hold now.

    A layer above ``max_imbalance`` gives its redundant slots anew: each to the expert with the most heat per
    replica, the heaviest replica first, on the coldest rank with a free one. Then the hottest rank
    exchanges experts with others: always the exchange that helps most, two ranks exchange once at most, an
    expert that was exchanged stays, and exchanges are few. Tokens are taken to split evenly, whatever
    ``shares`` says. A layer that gains too little is left as it is. Where nothing is loaded yet, experts are
    dealt to the ranks in order, and redundant slots evenly.

    Source: the description of SwiftBalancer at https://github.com/vllm-project/vllm/pull/24069, without its
    numbers: how many exchanges there are, and what each must gain, is chosen here.
    """
    ranks, size = request.topology.ranks, request.topology.slots_per_rank
    rows = []
    for layer, heat_E in enumerate(request.heat_LE):
        if request.current is None:
            start_P = _dealt(request.experts, ranks, size)
        else:
            start_P = request.current.slot_to_expert[layer].astype(np.int64)
        rows.append(_place_layer(heat_E, start_P, ranks, request.max_imbalance, request.current is None))
    return np.stack(rows)


def _place_layer(
    heat_E: FloatArray, start_P: Int64Array, ranks: int, target: float, fresh: bool
) -> Int64Array:
    mean = heat_E.sum() / ranks
    if not fresh and (mean <= 0 or _peak(start_P, heat_E, ranks) <= target * mean):
        return start_P
    expert_GS = start_P.reshape(ranks, -1).copy()
    _give_redundant_slots(expert_GS, heat_E)
    _exchange(expert_GS, heat_E, mean)
    gained = _peak(start_P, heat_E, ranks) - _peak(expert_GS.ravel(), heat_E, ranks)
    return expert_GS.ravel() if fresh or gained >= LEAST_GAIN * mean else start_P


def _dealt(experts: int, ranks: int, size: int) -> Int64Array:
    """Experts in order, as many on each rank as can be equal, the other slots empty."""
    expert_GS = np.full((ranks, size), EMPTY)
    borders = np.arange(ranks + 1) * experts // ranks
    for rank in range(ranks):
        held = np.arange(borders[rank], borders[rank + 1])
        expert_GS[rank, : len(held)] = held
    return expert_GS.ravel()


def _peak(expert_P: Int64Array, heat_E: FloatArray, ranks: int) -> float:
    """The hottest rank's load with even splits."""
    return float(_weights(expert_P.reshape(ranks, -1), heat_E).sum(axis=1).max())


def _weights(expert_GS: Int64Array, heat_E: FloatArray) -> FloatArray:
    """What each slot gets of its expert's heat, 0 where it is empty."""
    count_E = np.bincount(expert_GS[expert_GS >= 0], minlength=len(heat_E))
    weight_GS: FloatArray = np.where(expert_GS >= 0, (heat_E / np.maximum(count_E, 1))[expert_GS], 0.0)
    return weight_GS


def _give_redundant_slots(expert_GS: Int64Array, heat_E: FloatArray) -> None:
    """Empties all slots but the first of each expert, and fills them."""
    experts = len(heat_E)
    first_E = np.unique(expert_GS.ravel(), return_index=True)[1][-experts:]
    redundant_P = np.ones(expert_GS.size, np.bool_)
    redundant_P[first_E] = False
    expert_GS.ravel()[redundant_P] = EMPTY
    count_E = np.ones(experts, np.int64)
    for _ in range(int(redundant_P.sum())):
        # No more replicas than ranks: two on one would be wasted.
        each_E = np.where(count_E < len(expert_GS), heat_E / count_E, -1.0)
        count_E[each_E.argmax()] += 1
    extra = np.repeat(np.arange(experts), count_E - 1)
    for expert in extra[np.argsort(-(heat_E / count_E)[extra], kind="stable")]:
        _put_on_coldest(expert_GS, int(expert), heat_E / count_E)
    for rank, slot in np.argwhere(expert_GS == EMPTY):
        # What is left could be put nowhere apart: any expert that the rank does not hold.
        spare_E = np.where(np.isin(np.arange(experts), expert_GS[rank]), -1.0, heat_E / count_E)
        expert_GS[rank, slot] = spare_E.argmax()


def _put_on_coldest(expert_GS: Int64Array, expert: int, weight_E: FloatArray) -> None:
    load_G = np.where(expert_GS >= 0, weight_E[expert_GS], 0.0).sum(axis=1)
    open_G = (expert_GS == EMPTY).any(axis=1) & ~(expert_GS == expert).any(axis=1)
    if open_G.any():
        rank = int(np.where(open_G, load_G, np.inf).argmin())
        expert_GS[rank, (expert_GS[rank] == EMPTY).argmax()] = expert


def _exchange(expert_GS: Int64Array, heat_E: FloatArray, mean: float) -> None:
    """Exchanges slots of the hottest rank with those of others, in place."""
    ranks = len(expert_GS)
    open_GS, met_GG = np.ones(expert_GS.shape, np.bool_), np.eye(ranks, dtype=np.bool_)
    for _ in range(int(np.ceil(EXCHANGES_PER_RANK * ranks))):
        weight_GS = _weights(expert_GS, heat_E)
        load_G = weight_GS.sum(axis=1)
        hot = int(load_G.argmax())
        given_SGS = weight_GS[hot][:, None, None] - weight_GS
        peak_SGS = np.maximum(load_G[hot] - given_SGS, load_G[:, None] + given_SGS)
        possible_SGS = open_GS[hot][:, None, None] & open_GS & ~met_GG[hot][:, None]
        # No expert comes to a rank that holds it.
        possible_SGS &= ~(expert_GS[hot][:, None, None] == expert_GS).any(axis=2)[..., None]
        possible_SGS &= ~np.isin(expert_GS, expert_GS[hot])
        peak_SGS = np.where(possible_SGS, peak_SGS, np.inf)
        slot, rank, place = np.unravel_index(peak_SGS.argmin(), peak_SGS.shape)
        if load_G[hot] - peak_SGS[slot, rank, place] < LEAST_GAIN * mean:
            return
        mine, other = (hot, slot), (rank, place)
        expert_GS[mine], expert_GS[other] = expert_GS[other], expert_GS[mine]
        open_GS[mine] = open_GS[other] = False
        met_GG[hot, rank] = met_GG[rank, hot] = True
