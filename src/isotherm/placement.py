"""Which expert each slot holds, what each replica receives, and how to get there."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from isotherm.arrays import FloatArray, Int32Array, Int64Array, frozen
from isotherm.topology import MoEShape, Topology

EMPTY = -1
"""The expert of a slot that holds none: its weights are on the way, or it was never filled."""


@dataclass(frozen=True, eq=False)
class Placement:
    """For each layer, which logical expert each slot holds.

    ``slot_to_expert`` is int32 [layers, slots], read-only; ``EMPTY`` (-1) marks a slot without an
    expert. Every expert of ``range(experts)`` has at least one slot in every layer.

    Raises:
        ValueError: another number of dimensions, an expert out of range, or an expert without a
            slot; the message names the layer.
    """

    slot_to_expert: Int32Array
    experts: int

    def __post_init__(self) -> None:
        slot_to_expert_LP = np.asarray(self.slot_to_expert)
        if slot_to_expert_LP.ndim != 2:
            raise ValueError(f"slot_to_expert has shape {slot_to_expert_LP.shape}: give [layers, slots]")
        if slot_to_expert_LP.dtype.kind not in "iu":
            raise ValueError(f"slot_to_expert has dtype {slot_to_expert_LP.dtype}: give integers")
        lowest, highest = slot_to_expert_LP.min(initial=0), slot_to_expert_LP.max(initial=EMPTY)
        if lowest < EMPTY or highest >= self.experts:
            outside_LP = (slot_to_expert_LP < EMPTY) | (slot_to_expert_LP >= self.experts)
            layer, slot = np.argwhere(outside_LP)[0]
            raise ValueError(
                f"layer {layer}: slot {slot} names expert {slot_to_expert_LP[layer, slot]}, outside "
                f"{EMPTY} (empty) to {self.experts - 1}"
            )
        object.__setattr__(self, "slot_to_expert", frozen(slot_to_expert_LP, np.int32))
        missing = np.argwhere(self.replicas_LE == 0)
        if len(missing):
            layer = int(missing[0, 0])
            experts = missing[missing[:, 0] == layer, 1]
            raise ValueError(
                f"layer {layer}: experts {experts[:8].tolist()} have no slot; every expert needs one"
            )

    @classmethod
    def default(cls, shape: MoEShape, topology: Topology) -> Placement:
        """Slot ``p`` holds expert ``p % experts`` in every layer."""
        topology.check_holds(shape.experts)
        row_P = np.arange(topology.slots, dtype=np.int32) % shape.experts
        return cls(np.tile(row_P, (shape.layers, 1)), shape.experts)

    def check_fits(self, shape: MoEShape, topology: Topology) -> None:
        """Raises ValueError when this is a placement of another model or cluster."""
        wanted = (shape.layers, topology.slots)
        if self.slot_to_expert.shape != wanted or self.experts != shape.experts:
            raise ValueError(
                f"placement is {self.slot_to_expert.shape} of {self.experts} experts; the "
                f"shape and topology need {wanted} of {shape.experts}"
            )

    @property
    def layers(self) -> int:
        return int(self.slot_to_expert.shape[0])

    @property
    def slots(self) -> int:
        return int(self.slot_to_expert.shape[1])

    @property
    def replicas_LE(self) -> Int64Array:
        """How many slots hold each expert, int64 [layers, experts]."""
        cell_LP = _cells(self)
        counts = np.bincount(cell_LP[cell_LP >= 0], minlength=self.layers * self.experts)
        return counts.reshape(self.layers, self.experts)

    def even_shares(self) -> FloatArray:
        """Each expert's tokens split evenly over its replicas, float64 [layers, slots]."""
        safe_LP = np.maximum(self.slot_to_expert, 0)
        per_slot_LP = 1.0 / np.take_along_axis(self.replicas_LE, safe_LP.astype(np.int64), axis=1)
        return np.where(self.slot_to_expert >= 0, per_slot_LP, 0.0)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placement):
            return NotImplemented
        return self.experts == other.experts and np.array_equal(self.slot_to_expert, other.slot_to_expert)

    def __hash__(self) -> int:
        return hash((self.experts, self.slot_to_expert.tobytes()))


@dataclass(frozen=True)
class Move:
    """One expert's weights copied into one slot. ``layer`` counts MoE layers from 0, whatever
    their numbers in the model."""

    layer: int
    slot: int
    expert: int


class Refill(NamedTuple):
    """A slot that is retired and then filled: ``slot`` of a layer, counted as in `Move`, receives ``expert``
    from slot ``source``."""

    layer: int
    slot: int
    expert: int
    source: int


@dataclass(frozen=True, eq=False)
class Rounds:
    """How a plan's moves are carried out one after the other.

    The slots of a round are retired together, filled together, and published together, which may retire those
    of the next. Each expert keeps a live replica throughout, and each source is live. A swap of two single
    experts travels through a redundant slot, so there may be more refills than moves. Iterating gives a
    tuple of `Refill` for each round.

    ``refills_N5`` is int64 [refills, 5], read-only: round, layer, slot, expert, source, by ascending round.
    """

    refills_N5: Int64Array = field(default_factory=lambda: np.empty((0, 5), np.int64))

    def __post_init__(self) -> None:
        object.__setattr__(self, "refills_N5", frozen(self.refills_N5, np.int64))

    def __len__(self) -> int:
        return int(self.refills_N5[-1, 0]) + 1 if len(self.refills_N5) else 0

    def __iter__(self) -> Iterator[tuple[Refill, ...]]:
        borders = np.searchsorted(self.refills_N5[:, 0], np.arange(len(self) + 1))
        for first, last in pairwise(borders):
            yield tuple(Refill(*row) for row in self.refills_N5[first:last, 1:].tolist())


@dataclass(frozen=True, eq=False)
class Plan:
    """A new placement with its shares and its price. Doing nothing is a plan too.

    Attributes:
        placement: what each slot is to hold.
        shares: float64 [layers, slots], what each replica is to receive of its expert's tokens;
            the replicas of an expert sum to 1, an empty slot has 0.
        moves: the slots that change, in ascending (layer, slot).
        imbalance: float64 [layers], predicted for the heat that was planned on; 1 where it is zero.
        bound: float64 [layers], no placement and shares for this topology do better.
        reason: in words, why this plan and no other.
        layer_ids: the model's own numbers of the layers.
        rounds: the moves as rounds of slots to retire and fill, all but those of ``step_word_layers``.
    """

    placement: Placement
    shares: FloatArray
    moves: tuple[Move, ...]
    imbalance: FloatArray
    bound: FloatArray
    reason: str
    layer_ids: tuple[int, ...]
    rounds: Rounds = field(default_factory=Rounds)

    def __post_init__(self) -> None:
        check_shares(self.placement, self.shares)
        for name in ("shares", "imbalance", "bound"):
            object.__setattr__(self, name, frozen(getattr(self, name), np.float64))

    @property
    def step_word_layers(self) -> tuple[int, ...]:
        """The layers, counted as in `Move`, whose moves no rounds can carry out: all ranks must take them up
        in the same step, which the engine agrees on."""
        return tuple(sorted({move.layer for move in self.moves} - set(self.rounds.refills_N5[:, 1].tolist())))

    def to_bytes(self) -> bytes:
        """The plan as bytes (an npz archive, no pickle), the same for equal plans."""
        meta = {
            "experts": self.placement.experts,
            "reason": self.reason,
            "layer_ids": list(self.layer_ids),
        }
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {
            "slot_to_expert": self.placement.slot_to_expert,
            "shares": self.shares,
            "moves": np.array([(m.layer, m.slot, m.expert) for m in self.moves], np.int64),
            "imbalance": self.imbalance,
            "bound": self.bound,
            "refills": self.rounds.refills_N5,
            "meta": np.frombuffer(json.dumps(meta, sort_keys=True).encode(), np.uint8),
        }
        np.savez(buffer, **arrays)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Plan:
        """The plan that ``to_bytes`` wrote."""
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            meta = json.loads(arrays["meta"].tobytes())
            moves = arrays["moves"].reshape(-1, 3).tolist()
            return cls(
                placement=Placement(arrays["slot_to_expert"], meta["experts"]),
                shares=arrays["shares"],
                moves=tuple(Move(*move) for move in moves),
                imbalance=arrays["imbalance"],
                bound=arrays["bound"],
                reason=meta["reason"],
                layer_ids=tuple(meta["layer_ids"]),
                rounds=Rounds(arrays["refills"]),
            )


def digest(data: bytes) -> int:
    """A 63-bit digest of ``data``: what ranks compare instead of the data."""
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def check_shares(placement: Placement, shares_LP: FloatArray) -> None:
    """Raises ValueError unless shares are finite, in [0, 1], 0 in empty slots, and sum to 1 (within
    1e-6) over the replicas of each expert; the message names the layer."""
    if shares_LP.shape != placement.slot_to_expert.shape:
        raise ValueError(
            f"shares have shape {shares_LP.shape}, the placement {placement.slot_to_expert.shape}"
        )
    slot_to_expert_LP = placement.slot_to_expert
    bad = ~np.isfinite(shares_LP) | (shares_LP < 0) | (shares_LP > 1)
    bad |= (slot_to_expert_LP < 0) & (shares_LP != 0)
    if bad.any():
        layer, slot = np.argwhere(bad)[0]
        raise ValueError(
            f"layer {layer}, slot {slot}: share {shares_LP[layer, slot]} of expert "
            f"{slot_to_expert_LP[layer, slot]} must be finite, in [0, 1], and 0 in an empty slot"
        )
    sums_LE = expert_sums(placement, shares_LP)
    wrong = np.argwhere(np.abs(sums_LE - 1) > 1e-6)
    if len(wrong):
        layer, expert = wrong[0]
        raise ValueError(
            f"layer {layer}: the shares of expert {expert} sum to {sums_LE[layer, expert]:.6f}, not 1"
        )


def expert_sums(placement: Placement, values_LP: FloatArray) -> FloatArray:
    """Values of slots added up by expert, float64 [layers, experts]."""
    cell_LP = _cells(placement)
    held_LP = cell_LP >= 0
    weights: FloatArray = np.asarray(values_LP[held_LP], np.float64)
    sums = np.bincount(cell_LP[held_LP], weights, minlength=placement.layers * placement.experts)
    sums_LE: FloatArray = sums.astype(np.float64).reshape(placement.layers, placement.experts)
    return sums_LE


def _cells(placement: Placement) -> Int64Array:
    """Where the expert of each slot lies in [layers, experts] laid out in one row, int64 [layers, slots];
    negative for an empty slot."""
    first_L1 = placement.experts * np.arange(placement.layers, dtype=np.int64)[:, None]
    return np.where(placement.slot_to_expert >= 0, placement.slot_to_expert + first_L1, EMPTY)


def rank_loads(
    heat_LE: FloatArray | Int64Array,
    placement: Placement,
    shares_LP: FloatArray,
    topology: Topology,
) -> FloatArray:
    """What each rank would carry of this heat, float64 [layers, ranks], in the unit of ``heat_LE``."""
    safe_LP = np.maximum(placement.slot_to_expert, 0).astype(np.int64)
    slot_load_LP = np.take_along_axis(np.asarray(heat_LE, np.float64), safe_LP, axis=1) * shares_LP
    load_LG: FloatArray = slot_load_LP.reshape(placement.layers, topology.ranks, -1).sum(axis=2)
    return load_LG
