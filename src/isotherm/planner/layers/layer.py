"""One layer in the kernels: which slots its experts have, what each slot gets, what each rank carries.

Heat comes in units of the mean load of a rank, so that 1 is perfect balance and thresholds are plain
numbers. Slots, ranks and experts are records: a kernel is handed three arrays and not thirty, which it takes
longer to pass on than to work on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isotherm.arrays import FloatArray, Int64Array
from isotherm.jit import kernel

SLOT = np.dtype(
    [
        ("expert", np.int64),  # -1: empty
        ("rank", np.int64),
        ("tokens", np.float64),
        ("next", np.int64),  # the next slot of the expert, ascending, or -1
        ("next_shared", np.int64),  # the next slot of the rank whose expert has others too, or -1
        ("former", np.float64),  # tokens when the journal began
        ("marked", np.int64),  # the last journal that has the slot
        ("touched", np.int64),  # a list in the journal: slots
    ],
    align=True,
)
RANK = np.dtype(
    [
        ("load", np.float64),
        ("shared", np.int64),  # the first slot whose expert has others too, or -1
        ("former", np.float64),  # load when the journal began
        ("marked", np.int64),  # the last journal that has the rank
        ("touched", np.int64),  # a list in the journal: ranks
        # Scratch of walks. One that came to a rank was sent on by slot from_slot and arrived in to_slot.
        ("queue", np.int64),  # a list: ranks to go on from
        ("seen", np.int64),  # the last walk that came by
        ("from_slot", np.int64),
        ("to_slot", np.int64),
        ("back_from", np.int64),  # the same of a walk against the flow
        ("back_to", np.int64),
        # Groups of ranks in `level_kernels`.
        ("group", np.int64),
        ("order", np.int64),  # a list: ranks, group by group
        ("depth", np.int64),  # slots to send tokens through on the way to it
        ("arc", np.int64),  # the first of its shared slots that may lead on
        ("end", np.int64),  # where the group that begins at this place of the list ends
        # The two sides in `cut_kernels`.
        ("side", np.int64),
        ("part", np.int64),
        ("amount", np.float64),
        ("fixed", np.float64),  # what shares cannot take off it
    ],
    align=True,
)
EXPERT = np.dtype(
    [
        ("heat", np.float64),
        ("first", np.int64),  # the expert's first slot, or -1
        ("count", np.int64),  # how many it has
        ("seen", np.int64),  # the last walk that came by
        ("depth", np.int64),  # of the ranks that the last walk came from
        ("arc", np.int64),  # the first of its slots that may lead on
        ("relief", np.float64),  # scratch of `even_kernels`
    ],
    align=True,
)
Records = NDArray[Any]


class Layer(NamedTuple):
    """One layer and its loads. ``count_4`` counts walks, journals, and the slots and ranks in the journal."""

    slot_P: Records
    rank_G: Records
    expert_E: Records
    count_4: Int64Array
    slots_per_rank: int
    balanced: bool


@kernel
def new_layer(slot_expert_P: Int64Array, heat_E: FloatArray, ranks: int, balanced: bool) -> Layer:
    """The layer, with every expert split evenly over its slots."""
    slots, size = len(slot_expert_P), len(slot_expert_P) // ranks
    layer = Layer(
        np.zeros(slots, SLOT),
        np.zeros(ranks, RANK),
        np.zeros(len(heat_E), EXPERT),
        np.array([0, 1, 0, 0]),
        size,
        balanced,
    )
    for expert in range(len(heat_E)):
        layer.expert_E[expert]["heat"] = heat_E[expert]
        layer.expert_E[expert]["first"] = -1
    for rank in range(ranks):
        layer.rank_G[rank]["shared"] = -1
    for slot in range(slots - 1, -1, -1):
        layer.slot_P[slot]["rank"] = slot // size
        layer.slot_P[slot]["expert"] = -1
        set_expert(layer, slot, slot_expert_P[slot])
    split_evenly(layer)
    return layer


@kernel
def following(layer: Layer, owner: int, before: int, shared: bool) -> int:
    """The slot after ``before``, or the first for -1: of the expert ``owner``, or, if ``shared``, of those of
    the rank ``owner`` whose experts have others too. -1 at the end."""
    if before < 0:
        return int(layer.rank_G[owner]["shared"] if shared else layer.expert_E[owner]["first"])
    return int(layer.slot_P[before]["next_shared"] if shared else layer.slot_P[before]["next"])


@kernel
def hang_behind(layer: Layer, owner: int, before: int, slot: int, shared: bool) -> None:
    """Makes ``slot`` follow ``before``."""
    if before >= 0 and shared:
        layer.slot_P[before]["next_shared"] = slot
    elif before >= 0:
        layer.slot_P[before]["next"] = slot
    elif shared:
        layer.rank_G[owner]["shared"] = slot
    else:
        layer.expert_E[owner]["first"] = slot


@kernel
def put_in(layer: Layer, owner: int, slot: int, shared: bool) -> None:
    """Puts the slot into one of these ascending lists."""
    before, after = -1, following(layer, owner, -1, shared)
    while 0 <= after < slot:
        before, after = after, following(layer, owner, after, shared)
    hang_behind(layer, owner, slot, after, shared)
    hang_behind(layer, owner, before, slot, shared)


@kernel
def take_out(layer: Layer, owner: int, slot: int, shared: bool) -> None:
    """Takes the slot out of one of these lists."""
    before, at = -1, following(layer, owner, -1, shared)
    while at != slot:
        before, at = at, following(layer, owner, at, shared)
    hang_behind(layer, owner, before, following(layer, owner, slot, shared), shared)


@kernel
def set_expert(layer: Layer, slot: int, expert: int) -> None:
    """Gives the slot another expert, or none (-1). Tokens and loads stay as they are."""
    old = layer.slot_P[slot]["expert"]
    if old >= 0:
        if layer.expert_E[old]["count"] > 1:
            set_shared(layer, slot, False)
        take_out(layer, old, slot, False)
        layer.expert_E[old]["count"] -= 1
        if layer.expert_E[old]["count"] == 1:
            set_shared(layer, layer.expert_E[old]["first"], False)
    layer.slot_P[slot]["expert"] = expert
    if expert >= 0:
        if layer.expert_E[expert]["count"] == 1:
            set_shared(layer, layer.expert_E[expert]["first"], True)
        put_in(layer, expert, slot, False)
        layer.expert_E[expert]["count"] += 1
        if layer.expert_E[expert]["count"] > 1:
            set_shared(layer, slot, True)


@kernel
def set_shared(layer: Layer, slot: int, shared: bool) -> None:
    """Puts the slot among those of its rank whose experts have others too, or takes it out."""
    if shared:
        put_in(layer, layer.slot_P[slot]["rank"], slot, True)
    else:
        take_out(layer, layer.slot_P[slot]["rank"], slot, True)


@kernel
def split_evenly(layer: Layer) -> None:
    for slot in range(len(layer.slot_P)):
        expert = layer.slot_P[slot]["expert"]
        layer.slot_P[slot]["tokens"] = 0.0
        if expert >= 0:
            heat, count = layer.expert_E[expert]["heat"], layer.expert_E[expert]["count"]
            layer.slot_P[slot]["tokens"] = heat / count
    add_loads(layer)


@kernel
def add_loads(layer: Layer) -> None:
    """Adds up the loads from the tokens of all slots."""
    for rank in range(len(layer.rank_G)):
        layer.rank_G[rank]["load"] = 0.0
    for slot in range(len(layer.slot_P)):
        layer.rank_G[layer.slot_P[slot]["rank"]]["load"] += layer.slot_P[slot]["tokens"]


@kernel
def peak_of(layer: Layer) -> float:
    """The load of the hottest rank."""
    peak: float = layer.rank_G[0]["load"]
    for rank in range(len(layer.rank_G)):
        peak = max(peak, layer.rank_G[rank]["load"])
    return peak


@kernel
def read_experts(layer: Layer, slot_expert_P: Int64Array) -> None:
    """Writes down what each slot holds."""
    for slot in range(len(slot_expert_P)):
        slot_expert_P[slot] = layer.slot_P[slot]["expert"]


@kernel
def has_one_slot(layer: Layer, expert: int) -> bool:
    return bool(layer.expert_E[expert]["count"] == 1)


@kernel
def holds(layer: Layer, rank: int, expert: int) -> bool:
    slot = layer.expert_E[expert]["first"]
    while slot >= 0:
        if layer.slot_P[slot]["rank"] == rank:
            return True
        slot = layer.slot_P[slot]["next"]
    return False


@kernel
def first_unseen(layer: Layer, expert: int) -> int:
    """The first slot of the expert, or -1 where the present walk has come by the expert before."""
    if layer.expert_E[expert]["seen"] == layer.count_4[0]:
        return -1
    layer.expert_E[expert]["seen"] = layer.count_4[0]
    return int(layer.expert_E[expert]["first"])


@kernel
def set_tokens(layer: Layer, slot: int, tokens: float) -> None:
    """Sets the slot's tokens, until `undo`."""
    if layer.slot_P[slot]["marked"] != layer.count_4[1]:
        layer.slot_P[slot]["marked"] = layer.count_4[1]
        layer.slot_P[slot]["former"] = layer.slot_P[slot]["tokens"]
        layer.slot_P[layer.count_4[2]]["touched"] = slot
        layer.count_4[2] += 1
    layer.slot_P[slot]["tokens"] = tokens


@kernel
def set_load(layer: Layer, rank: int, load: float) -> None:
    """Sets the rank's load, until `undo`."""
    if layer.rank_G[rank]["marked"] != layer.count_4[1]:
        layer.rank_G[rank]["marked"] = layer.count_4[1]
        layer.rank_G[rank]["former"] = layer.rank_G[rank]["load"]
        layer.rank_G[layer.count_4[3]]["touched"] = rank
        layer.count_4[3] += 1
    layer.rank_G[rank]["load"] = load


@kernel
def begin(layer: Layer) -> None:
    """Begins the journal anew: what was set stays."""
    layer.count_4[1] += 1
    layer.count_4[2] = layer.count_4[3] = 0


@kernel
def undo(layer: Layer) -> None:
    """Takes back what `set_tokens` and `set_load` did since the journal began."""
    for i in range(layer.count_4[2]):
        slot = layer.slot_P[i]["touched"]
        layer.slot_P[slot]["tokens"] = layer.slot_P[slot]["former"]
    for i in range(layer.count_4[3]):
        rank = layer.rank_G[i]["touched"]
        layer.rank_G[rank]["load"] = layer.rank_G[rank]["former"]
    begin(layer)
