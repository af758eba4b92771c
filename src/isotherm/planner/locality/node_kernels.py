"""Which nodes hold which experts, so that many pairs stay near and no node has too much to carry.

An expert on a node keeps that node's pairs of it near. Tokens of other nodes are taken to be dealt out evenly
over its slots, and what a node then has above its limit costs a pair each: so much must leave it again.

Heat comes in units of the mean load of a rank.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel

SWEEPS = 16
"""At most so often is every expert of every node looked at for a trade."""
LEAST_GAIN = 1e-6
"""A trade gains at least this part of a rank's mean load."""


class Homes(NamedTuple):
    """One layer's experts on nodes: ``slots_NE`` how many slots a node has for an expert, ``count_E`` how
    many all nodes have, ``load_N`` what each node carries, ``limit`` what it may."""

    source_NE: FloatArray
    slots_NE: Int64Array
    count_E: Int64Array
    load_N: FloatArray
    limit: float


@kernel
def choose_homes(source_NE: FloatArray, ranks: int, size: int, limit: float, full: float) -> Int64Array:
    """How many slots each node has for each expert, int64 [nodes, experts], all slots of all nodes; a node's
    ranks are to carry ``limit`` on average at most, and the only slot of an expert ``full``."""
    nodes, experts = source_NE.shape
    per_node = ranks // nodes
    homes = Homes(
        source_NE,
        np.zeros((nodes, experts), np.int64),
        np.zeros(experts, np.int64),
        np.zeros(nodes),
        per_node * limit,
    )
    left_N = np.full(nodes, per_node * size)
    give_homes(homes, left_N, per_node, full)
    give_more(homes, left_N)
    for _ in range(SWEEPS):
        if not trade_homes(homes):
            break
    return homes.slots_NE


@kernel
def put_on(homes: Homes, node: int, expert: int, slots: int) -> None:
    """Gives the expert so many slots more on a node; fewer where negative."""
    weigh(homes, expert, -1.0)
    homes.slots_NE[node, expert] += slots
    homes.count_E[expert] += slots
    weigh(homes, expert, 1.0)


@kernel
def weigh(homes: Homes, expert: int, sign: float) -> None:
    """Adds what the expert's nodes carry of it to their loads, or with ``sign`` -1 takes it away."""
    if homes.count_E[expert] == 0:
        return
    per_slot = away_per_slot(homes, expert)
    for node in range(len(homes.load_N)):
        if homes.slots_NE[node, expert] > 0:
            carried = homes.source_NE[node, expert] + per_slot * homes.slots_NE[node, expert]
            homes.load_N[node] += sign * carried


@kernel
def away_per_slot(homes: Homes, expert: int) -> float:
    """What each slot of the expert gets from nodes without it."""
    away = 0.0
    for node in range(len(homes.load_N)):
        if homes.slots_NE[node, expert] == 0:
            away += homes.source_NE[node, expert]
    return away / int(homes.count_E[expert])


@kernel
def give_homes(homes: Homes, left_N: Int64Array, most: int, full: float) -> None:
    """To each expert, hottest first, the slots that it cannot do without, at most ``most`` on a node. Each
    goes to the node with most of its pairs that its slots there do not carry yet, less what that node would
    carry above its part of what has been given out. No node takes more than its part of all that is needed,
    so that cold experts are left for each."""
    heat_E, given, spared_N = homes.source_NE.sum(axis=0), 0.0, left_N.copy()
    needed_E = count_needed(heat_E, full)
    while needed_E.sum() > left_N.sum():
        full *= 1.1
        needed_E = count_needed(heat_E, full)
    part = -(-needed_E.sum() // len(left_N))
    for expert in np.argsort(-heat_E, kind="mergesort"):
        given += heat_E[expert]
        slots = needed_E[expert]
        for _ in range(slots):
            best, best_value = -1, -np.inf
            for node in range(len(left_N)):
                own, held = homes.source_NE[node, expert], homes.slots_NE[node, expert]
                is_full = left_N[node] == 0 or spared_N[node] - left_N[node] >= part or held >= most
                if is_full and not (best < 0 and left_N[node] > 0 and held < most):
                    continue
                above = max(homes.load_N[node] + heat_E[expert] / slots - given / len(left_N), 0.0)
                value = min(own - held * full, heat_E[expert] / slots) - above - (1e9 if is_full else 0.0)
                if value > best_value:
                    best, best_value = node, value
            if best >= 0:
                left_N[best] -= 1
                put_on(homes, best, expert, 1)


@kernel
def count_needed(heat_E: FloatArray, full: float) -> Int64Array:
    """Slots with which none carries more than ``full``, at least one for each expert."""
    needed_E = np.ones(len(heat_E), np.int64)
    for expert in range(len(heat_E)):
        needed_E[expert] = max(1, int(np.ceil(heat_E[expert] / full)))
    return needed_E


@kernel
def give_more(homes: Homes, left_N: Int64Array) -> None:
    """What slots are left to the experts with the most pairs there; to all of them once more where a node has
    more slots than experts."""
    nodes, experts = homes.source_NE.shape
    key_X, held = np.empty(nodes * experts), 0
    for node in range(nodes):
        for expert in range(experts):
            key_X[node * experts + expert] = -homes.source_NE[node, expert]
    order_X = np.argsort(key_X, kind="mergesort")
    while left_N.sum() > 0:
        for each in order_X:
            node, expert = each // experts, each % experts
            if left_N[node] > 0 and homes.slots_NE[node, expert] <= held:
                put_on(homes, node, expert, 1)
                left_N[node] -= 1
        held += 1


@kernel
def trade_homes(homes: Homes) -> bool:
    """Looks at every expert of every node once, and makes the best trade that there is for it: with an expert
    of another node, or, where it has other slots too, for one that comes in its place. Whether one was
    made."""
    found = False
    for node in range(len(homes.load_N)):
        for expert in range(homes.source_NE.shape[1]):
            if homes.slots_NE[node, expert] == 1 and trade_home(homes, node, expert):
                found = True
    return found


@kernel
def trade_home(homes: Homes, node: int, expert: int) -> bool:
    best, best_node, best_expert = LEAST_GAIN, -1, -1
    above = overload(homes)
    for other in range(homes.source_NE.shape[1]):
        if homes.slots_NE[node, other] > 0:
            continue
        comes = homes.source_NE[node, other] - homes.source_NE[node, expert]
        for partner in range(len(homes.load_N)):
            # The node itself for a partner: the other expert comes, and nothing goes back.
            gain = comes
            if partner == node:
                if homes.count_E[expert] < 2:
                    continue
            else:
                if homes.slots_NE[partner, expert] > 0 or homes.slots_NE[partner, other] != 1:
                    continue
                gain += homes.source_NE[partner, expert] - homes.source_NE[partner, other]
            if gain + above <= best:
                continue
            make_trade(homes, node, expert, partner, other)
            gain += above - overload(homes)
            make_trade(homes, node, other, partner, expert)
            if gain > best:
                best, best_node, best_expert = gain, partner, other
    if best_node < 0:
        return False
    make_trade(homes, node, expert, best_node, best_expert)
    return True


@kernel
def overload(homes: Homes) -> float:
    """What nodes carry above their limit."""
    total = 0.0
    for load in homes.load_N:
        total += max(load - homes.limit, 0.0)
    return total


@kernel
def make_trade(homes: Homes, node: int, expert: int, partner: int, other: int) -> None:
    put_on(homes, node, expert, -1)
    put_on(homes, node, other, 1)
    if partner != node:
        put_on(homes, partner, other, -1)
        put_on(homes, partner, expert, 1)
