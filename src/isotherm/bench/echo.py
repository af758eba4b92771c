"""A link to peers that say what this rank says: one rank of many, without the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from isotherm.arrays import Int32Array, Int64Array
from isotherm.control.link import Transfer, WordArray


class EchoLink:
    """Rank 0 of ``size`` ranks that all hold the same. What a rank hands over does not depend on what the
    others say, so it can be counted here for groups larger than the machine; nothing is sent anywhere."""

    def __init__(self, size: int) -> None:
        self.rank = 0
        self.size = size
        self.sent_bytes = 0
        self._said = b""

    def all_gather(self, words_W: WordArray, out: WordArray | None = None) -> WordArray:
        self.sent_bytes += words_W.nbytes
        out_GW = cast(WordArray, np.empty((self.size, len(words_W)), words_W.dtype)) if out is None else out
        out_GW[:] = words_W
        return out_GW

    def all_reduce(self, array: Int32Array | Int64Array) -> None:
        self.sent_bytes += array.nbytes
        array *= self.size

    def broadcast(self, data: bytes | None, size: int, source: int) -> bytes:
        if data is not None:
            self.sent_bytes += size
            self._said = data
        return self._said

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        raise NotImplementedError("no weights move in a benchmark of heat")
