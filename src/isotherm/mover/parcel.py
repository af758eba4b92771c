"""A ledger as bytes, for a rank that has missed what made it."""

from __future__ import annotations

import io
from dataclasses import astuple

import numpy as np

from isotherm.arrays import frozen
from isotherm.mover import agreed
from isotherm.mover.ledger import Ledger, Phase
from isotherm.mover.schedule import Fill


def pack(ledger: Ledger) -> bytes:
    """The ledger as bytes (an npz archive, no pickle). Nothing is under way in it but tables that ranks have
    still to agree on."""
    assert ledger.phase in (Phase.SETTLED, Phase.AGREEING), "what was under way was called off"
    buffer = io.BytesIO()
    numbers = [ledger.experts, ledger.epoch, ledger.since_step, ledger.phase is Phase.AGREEING]
    np.savez(
        buffer,
        content=ledger.content,
        version=ledger.version,
        shares=ledger.shares,
        numbers=np.array(numbers, np.int64),
        batch=np.array([astuple(fill) for fill in ledger.batch], np.int64),
    )
    return buffer.getvalue()


def unpack(data: bytes) -> Ledger:
    """The ledger that ``pack`` wrote; nothing comes after what is in it."""
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        experts, epoch, since_step, is_agreeing = arrays["numbers"].tolist()
        ledger = Ledger(
            content=frozen(arrays["content"], np.int32),
            version=frozen(arrays["version"], np.int64),
            shares=frozen(arrays["shares"], np.float64),
            experts=experts,
            goal_shares=frozen(arrays["shares"], np.float64),
            epoch=epoch,
            phase=Phase.AGREEING if is_agreeing else Phase.SETTLED,
            batch=tuple(Fill(*row) for row in arrays["batch"].tolist()),
            since_step=since_step,
        )
    return agreed.called_off(ledger, since_step) if is_agreeing else ledger
