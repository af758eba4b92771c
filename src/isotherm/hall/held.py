"""Weights in slots as the engine sees them from outside: by expert, refilled, compared."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.control import Meeting
from isotherm.forward import ForwardPath
from isotherm.hall.loop import Loop
from isotherm.mover import Ledger, LocalSlots, Mover, Phase, Tensors, Unequal, find_unequal

_HOLD, _REFILL, _RELEASE, _COMPARE = range(1, 5)
"""What the engine's threads of all ranks meet for."""


class HeldWeights:
    """`Balancer` documents what its methods promise; they are one to one.

    Args:
        slots: this rank's; None where the balancer knows no weights.
        forward: knows which tables are in force.
        drive: brings the next round nearer.
    """

    def __init__(
        self,
        slots: LocalSlots | None,
        forward: ForwardPath,
        loop: Loop,
        layers: int,
        drive: Callable[[], object],
    ) -> None:
        self._local_slots = slots
        self._forward = forward
        self._loop = loop
        self._mover: Mover = loop.mover
        self._layers = layers
        self._drive = drive
        self.meeting = Meeting(is_ready=self._may_meet, on_met=self._on_met)

    def logical_state(self) -> list[dict[int, Tensors]]:
        slots, ledger = self._slots(), self._ledger()
        state, copies = slots.logical_state(ledger), slots.retired(ledger)
        self._forward.wait()
        # What lets a slot be retired is another replica, which may have arrived on a rank whose ledger is a
        # round older: there it is missing. A slot that is not dead by now has not been written to.
        version_LP = self._ledger().version
        for fill, tensors in copies:
            place = fill.layer, fill.target
            if version_LP[place] == ledger.version[place]:
                state[fill.layer].setdefault(int(ledger.content[place]), tensors)
        return state

    def reload(self, source: Mapping[tuple[int, int], Tensors], timeout_seconds: float) -> None:
        slots, deadline, nothing = self._slots(), time.monotonic() + timeout_seconds, np.zeros(0, np.int64)
        self._meet(_HOLD, nothing, deadline)
        self._forward.catch_up()  # nothing new was offered since, on any rank
        self._meet(_REFILL, nothing, deadline)
        slots.refill(self._mover.ledger, source)
        self._forward.wait()  # what moves next may be read on another stream
        self._meet(_RELEASE, nothing, deadline)

    def check_replicas(self, timeout_seconds: float) -> tuple[Unequal, ...]:
        checksums_W = self._slots().checksums(self._ledger())
        gathered_GW = self._meet(_COMPARE, checksums_W, time.monotonic() + timeout_seconds)
        return find_unequal(gathered_GW, self._layers)

    def _ledger(self) -> Ledger:
        """What the slots hold in this step."""
        return self._mover.ledger_in_force(self._forward.epoch)

    def _slots(self) -> LocalSlots:
        if self._local_slots is None:
            raise ValueError("the balancer was built with weights=None: it knows no weights")
        return self._local_slots

    def _meet(self, kind: int, words_W: Int64Array, deadline: float) -> Int64Array:
        return self.meeting.meet(kind, words_W, self._drive, max(deadline - time.monotonic(), 0.0))

    def _may_meet(self, kind: int) -> bool:
        """To refill, weights on their way must have arrived, or have been given up."""
        return kind != _REFILL or (self._mover.ledger.phase is Phase.SETTLED and self._mover.is_clear)

    def _on_met(self, kind: int) -> None:
        if kind == _HOLD:
            self._loop.hold()
        elif kind == _RELEASE:
            self._loop.release()
