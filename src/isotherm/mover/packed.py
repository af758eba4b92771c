"""A settled ledger as bytes, for a rank that has missed what made it."""

from __future__ import annotations

import io

import numpy as np

from isotherm.arrays import frozen
from isotherm.errors import ProtocolError
from isotherm.mover.ledger import Ledger, Phase


def pack(ledger: Ledger) -> bytes:
    """The ledger as bytes (an npz archive, no pickle); none where the ranks have still to agree on it."""
    if ledger.phase is not Phase.SETTLED:
        return b""
    buffer = io.BytesIO()
    numbers = np.array([ledger.experts, ledger.epoch, ledger.since_step], np.int64)
    np.savez(buffer, content=ledger.content, version=ledger.version, shares=ledger.shares, numbers=numbers)
    return buffer.getvalue()


def unpack(data: bytes) -> Ledger:
    """The ledger that ``pack`` wrote.

    Raises:
        ProtocolError: there is none.
    """
    if not data:
        raise ProtocolError(
            "the link broke while the ranks were taking up tables in the same step, and some have and others "
            "have not: no weight is moved any more; restart the engine to balance again"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        experts, epoch, since_step = arrays["numbers"].tolist()
        return Ledger(
            content=frozen(arrays["content"], np.int32),
            version=frozen(arrays["version"], np.int64),
            shares=frozen(arrays["shares"], np.float64),
            experts=experts,
            goal_shares=frozen(arrays["shares"], np.float64),
            epoch=epoch,
            since_step=since_step,
        )
