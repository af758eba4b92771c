"""Routing tables on the host: compressed rows of replicas and their cumulative shares."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isotherm.arrays import FloatArray, Int32Array, Int64Array, frozen

ONE = 1 << 32
"""The whole of an expert's tokens in fixed point: cumulative shares end here."""

OTHERS_ONE = 1 << 20
"""One token of another rank, for each of this rank's, in fixed point."""

ALL = 1 << 62
"""More tokens than a batch can have, above a slot in the low half."""


@dataclass(frozen=True, eq=False)
class RoutingTables:
    """The replicas of every expert and what each receives, as arrays of constant shape.

    Attributes:
        offsets: int32 [layers, experts + 1]; the replicas of expert ``e`` stand in
            ``slots[layer, offsets[layer, e]:offsets[layer, e + 1]]``.
        slots: int32 [layers, slots], sorted by expert, then slot; empty slots last.
        ends: int64 [layers, slots]: cumulative share of the replicas of an expert up to and with this
            one, in units of 2^-32. The last replica with a share, and those behind it, end at 2^32.
        others: int64 [layers, ranks], to level each batch: what each rank receives of the other ranks for
            each pair of this one, in units of 2^-20. No columns: batches are split by shares alone.
    """

    offsets: Int32Array
    slots: Int32Array
    ends: Int64Array
    others: Int64Array

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Offsets, slots and ends, in that order: what a split by shares needs."""
        return self.offsets, self.slots, self.ends

    @classmethod
    def build(
        cls,
        slot_to_expert_LP: Int32Array,
        shares_LP: FloatArray,
        experts: int,
        others_LG: FloatArray | None = None,
    ) -> RoutingTables:
        """Tables for these contents (-1: empty) and shares (0: retired).

        With ``others_LG`` each large batch is levelled by its own counts (`level_kernels`): what each rank
        receives of all other ranks for each pair of this one, [layers, ranks].

        Raises:
            ValueError: an expert without a replica that has a share; the message names the layer.
        """
        layers, num_slots = slot_to_expert_LP.shape
        # Empty slots sort behind every expert.
        key_LP = np.where(slot_to_expert_LP < 0, experts, slot_to_expert_LP).astype(np.int64)
        # Integers of 16 bits are sorted by their digits.
        short_LP = key_LP.astype(np.int16) if experts < 2**15 else key_LP
        slots_LP = np.argsort(short_LP, axis=1, kind="stable")
        key_LP = np.take_along_axis(key_LP, slots_LP, axis=1)
        shares_LP = np.take_along_axis(shares_LP, slots_LP, axis=1)
        layer_L1 = np.arange(layers)[:, None]
        counts = np.bincount(
            (key_LP + layer_L1 * (experts + 1)).ravel(), minlength=layers * (experts + 1)
        ).reshape(layers, experts + 1)
        offsets_LE1 = np.zeros((layers, experts + 1), np.int64)
        np.cumsum(counts[:, :experts], axis=1, out=offsets_LE1[:, 1:])
        sums_LP1 = np.zeros((layers, num_slots + 1))
        np.cumsum(shares_LP, axis=1, out=sums_LP1[:, 1:])
        starts_LE1 = np.take_along_axis(sums_LP1, offsets_LE1, axis=1)
        totals_LE = np.diff(starts_LE1, axis=1)
        _check_served(totals_LE)
        inner_LP = np.minimum(key_LP, experts - 1)
        start_LP = np.take_along_axis(starts_LE1, inner_LP, axis=1)
        total_LP = np.take_along_axis(totals_LE, inner_LP, axis=1)
        ends_LP = np.rint((sums_LP1[:, 1:] - start_LP) / total_LP * ONE).astype(np.int64)
        _close_rows(ends_LP, shares_LP, key_LP, offsets_LE1)
        others = np.zeros((layers, 0)) if others_LG is None else np.rint(others_LG * OTHERS_ONE)
        return cls(
            frozen(offsets_LE1, np.int32),
            frozen(slots_LP, np.int32),
            frozen(ends_LP, np.int64),
            frozen(others, np.int64),
        )


def _check_served(totals_LE: FloatArray) -> None:
    unserved = np.argwhere(totals_LE <= 0)
    if len(unserved):
        layer, expert = unserved[0]
        raise ValueError(f"layer {layer}: expert {expert} has no replica with a share")


def _close_rows(
    ends_LP: Int64Array, shares_LP: FloatArray, key_LP: Int64Array, offsets_LE1: Int64Array
) -> None:
    """Ends each row at exactly 2^32 from its last replica with a share on, whatever was rounded."""
    layers, num_slots = ends_LP.shape
    experts = offsets_LE1.shape[1] - 1
    served_LP1 = np.zeros((layers, num_slots + 1), np.int64)
    np.cumsum(shares_LP > 0, axis=1, out=served_LP1[:, 1:])
    all_LE = np.take_along_axis(served_LP1, offsets_LE1[:, 1:], axis=1)
    all_LP = np.take_along_axis(all_LE, np.minimum(key_LP, experts - 1), axis=1)
    # No replica with a share stands behind, in its row; slots that are empty are in none.
    ends_LP[(served_LP1[:, 1:] == all_LP) | (key_LP == experts)] = ONE


def fill_whole(tables: RoutingTables, whole_LE: Int64Array, split_LE1: Int32Array) -> None:
    """Writes what a batch does not change. ``whole_LE``: the slot of each expert's first replica with a
    share, plus `ALL` where no other has one. ``split_LE1``: how many experts have several such replicas,
    then which."""
    offsets_LE1, slots_LP, ends_LP = (np.asarray(array, np.int64) for array in tables.arrays)
    layers, num_slots = slots_LP.shape
    begins_LP = np.zeros_like(ends_LP)
    begins_LP[:, 1:] = ends_LP[:, :-1]
    np.put_along_axis(begins_LP, offsets_LE1[:, :-1], 0, axis=1)
    live_LP = (ends_LP > begins_LP) & (np.arange(num_slots) < offsets_LE1[:, -1:])
    before_LP1 = np.zeros((layers, num_slots + 1), np.int64)  # live ones before each, in its layer
    np.cumsum(live_LP, axis=1, out=before_LP1[:, 1:])
    before_LE1 = np.take_along_axis(before_LP1, offsets_LE1, axis=1)
    several_LE = np.diff(before_LE1, axis=1) > 1
    layer_N, slot_N = np.nonzero(live_LP)
    first_LE = slot_N[np.searchsorted(layer_N, np.arange(layers))[:, None] + before_LE1[:, :-1]]
    whole_LE[:] = np.take_along_axis(slots_LP, first_LE, axis=1) + np.where(several_LE, 0, ALL)
    layer_N, expert_N = np.nonzero(several_LE)
    split_LE1[:, 0] = several_LE.sum(axis=1)
    split_LE1[layer_N, 1 + np.arange(len(layer_N)) - np.searchsorted(layer_N, layer_N)] = expert_N
