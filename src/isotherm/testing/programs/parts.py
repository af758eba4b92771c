"""Parts of the programs: links between ranks for one real thread, and placements to move between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch

from isotherm.arrays import Int32Array, Int64Array
from isotherm.control import Transfer
from isotherm.control.link import WordArray


class LoneLink:
    """A group of which this rank is the only one that talks."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank
        self.size = 1
        self.sent_bytes = 0

    def all_gather(self, words_W: WordArray, out: WordArray | None = None) -> WordArray:
        if out is None:
            out = cast(WordArray, np.empty((1, len(words_W)), words_W.dtype))
        out[:] = words_W
        return out

    def all_reduce(self, array: Int32Array | Int64Array) -> None:
        pass

    def broadcast(self, data: bytes | None, size: int, source: int) -> bytes:
        assert data is not None, "the only rank is the source"
        return data

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        assert not sends, "there is nobody to send to"
        assert not receives, "there is nobody to receive from"


class ScriptedLink(LoneLink):
    """A link whose peer sends what ``peer_sends(tag)`` says, and keeps what it received in ``received``."""

    def __init__(self, peer_sends: Callable[[int], bytes]) -> None:
        super().__init__()
        self._peer_sends = peer_sends
        self.received: list[bytes] = []

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        for transfer in sends:
            self.received.append(transfer.buffer.numpy().tobytes())
        for transfer in receives:
            data = np.frombuffer(self._peer_sends(transfer.tag), np.uint8)
            transfer.buffer.copy_(torch.from_numpy(data.copy()))


def some_content(traffic: np.random.Generator, layers: int, experts: int, slots: int) -> Int32Array:
    """Which expert each slot holds, [layers, slots], each at least once."""
    rows = [
        traffic.permutation([*range(experts), *traffic.integers(0, experts, slots - experts)])
        for _ in range(layers)
    ]
    return np.stack(rows).astype(np.int32)
