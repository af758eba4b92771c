"""The weights of this rank's slots by the experts that they hold: read, compared, refilled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from isotherm.arrays import Int64Array
from isotherm.mover.ledger import Ledger, Phase
from isotherm.mover.schedule import Fill
from isotherm.mover.weights import ExpertWeights, Weights
from isotherm.placement import EMPTY
from isotherm.topology import Topology

Tensors: TypeAlias = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Unequal:
    """A replica whose bytes are not those of the first replica of its expert."""

    layer: int
    slot: int
    expert: int
    first_slot: int


class LocalSlots:
    """This rank's slots. A slot that the newest ledger does not retire keeps its content at least until the
    engine's thread begins another step, so what is read between two steps is whole."""

    def __init__(self, weights: Weights, experts: ExpertWeights, topology: Topology, rank: int) -> None:
        self._weights = weights
        self._experts = experts
        self._slots = topology.slots_per_rank
        self._first = rank * topology.slots_per_rank

    def logical_state(self, ledger: Ledger) -> list[dict[int, Tensors]]:
        """For each layer, the tensors of every expert that a slot here holds, whatever its share, but for
        slots that are being retired: views, not copies."""
        state: list[dict[int, Tensors]] = [{} for _ in self._weights]
        retiring = {(fill.layer, fill.target) for fill in self._retiring(ledger)}
        for layer, slot, expert in self._held(ledger, live=False):
            if (layer, self._first + slot) not in retiring:
                state[layer].setdefault(expert, self._tensors(layer, slot))
        return state

    def retired(self, ledger: Ledger) -> list[tuple[Fill, Tensors]]:
        """What the slots here that are being retired still hold: copies, which are whole where the slots are
        not dead when all of it is copied."""
        fills = self._retiring(ledger)
        views = [self._tensors(fill.layer, fill.target - self._first) for fill in fills]
        copies = [{name: view.detach().clone() for name, view in each.items()} for each in views]
        return list(zip(fills, copies, strict=True))

    def refill(self, ledger: Ledger, source: Mapping[tuple[int, int], Tensors]) -> None:
        """Copies ``source[layer, expert]`` into every slot that holds the expert."""
        for layer, slot, expert in self._held(ledger, live=False):
            tensors = source[layer, expert]
            if tensors.keys() != self._weights[layer].keys():
                raise ValueError(
                    f"layer {layer}, expert {expert}: tensors {sorted(tensors)} given, slots hold "
                    f"{sorted(self._weights[layer])}"
                )
            for name, ours in self._weights[layer].items():
                ours[slot].detach().copy_(tensors[name])

    def checksums(self, ledger: Ledger) -> Int64Array:
        """int64 [layers * slots_per_rank * 2]: expert (-1: not live) and checksum of each slot."""
        words_LS2 = np.full((len(self._weights), self._slots, 2), -1, np.int64)
        for layer, slot, expert in self._held(ledger, live=True):
            words_LS2[layer, slot] = expert, _checksum(self._experts.views(layer, slot))
        return words_LS2.reshape(-1)

    def _retiring(self, ledger: Ledger) -> list[Fill]:
        """Fills of slots here that are neither dead yet nor were before."""
        own = range(self._first, self._first + self._slots)
        batch = ledger.batch if ledger.phase is Phase.RETIRING else ()
        return [f for f in batch if f.target in own and ledger.content[f.layer, f.target] != EMPTY]

    def _tensors(self, layer: int, slot: int) -> Tensors:
        return {name: tensors[slot] for name, tensors in self._weights[layer].items()}

    def _held(self, ledger: Ledger, *, live: bool) -> list[tuple[int, int, int]]:
        """(layer, local slot, expert), of those live, or of all that are not empty."""
        own = slice(self._first, self._first + self._slots)
        content_LS = ledger.content[:, own]
        chosen_LS = (ledger.shares[:, own] > 0) if live else (content_LS >= 0)
        return [(int(la), int(s), int(content_LS[la, s])) for la, s in np.argwhere(chosen_LS)]


def find_unequal(gathered_GW: Int64Array, layers: int) -> tuple[Unequal, ...]:
    """Replicas that differ, from the checksums of all ranks, [ranks, words]."""
    ranks = len(gathered_GW)
    words_LP2 = gathered_GW.reshape(ranks, layers, -1, 2).transpose(1, 0, 2, 3).reshape(layers, -1, 2)
    found: list[Unequal] = []
    for layer, words_P2 in enumerate(words_LP2.tolist()):
        first: dict[int, tuple[int, int]] = {}
        for slot, (expert, checksum) in enumerate(words_P2):
            if expert < 0:
                continue
            first_slot, wanted = first.setdefault(expert, (slot, checksum))
            if checksum != wanted:
                found.append(Unequal(layer, slot, expert, first_slot))
    return tuple(found)


def _checksum(views: tuple[torch.Tensor, ...]) -> int:
    hashed = hashlib.blake2b(digest_size=8)
    for view in views:
        hashed.update(view.cpu().contiguous().numpy().data)
    return int.from_bytes(hashed.digest(), "little") >> 1
