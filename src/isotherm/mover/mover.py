"""The part of moving that talks: acknowledgements gathered, the ledger advanced, weights carried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from isotherm.arrays import Int64Array
from isotherm.control import Link, Span, no_span
from isotherm.mover import ledger as transitions
from isotherm.mover.ledger import Fill, Ledger, Phase, Rules
from isotherm.placement import Placement


class Transport(Protocol):
    """Carries the weights of fills; see `mover.transport.HostTransport`."""

    received_bytes: int

    def carry(self, fills: Sequence[Fill], link: Link) -> None: ...

    def close(self) -> None: ...


class Mover:
    """Heartbeat participant that advances the ledger, the same on every rank.

    Args:
        start: the ledger of weights as loaded.
        rules: how many slots are retired at once, and what the others receive meanwhile.
        transport: carries weights; None where weights never move, and goals must equal what is.
        bytes_per_expert, bytes_per_step: what a move weighs, and what may arrive per step of the
            engine, over all ranks. A batch's moves are carried as the budget grows.
        finished: reads ``(epoch, steps)`` of this rank: the newest tables with which a step is finished
            (done on its stream), and how many steps are. Never waits.
        publish: called when an epoch begins, with the ledger to build tables from.
    """

    header_words = 3  # epoch finished, epoch filled, steps finished

    def __init__(
        self,
        start: Ledger,
        rules: Rules,
        transport: Transport | None,
        *,
        bytes_per_expert: int,
        bytes_per_step: int,
        finished: Callable[[], tuple[int, int]],
        publish: Callable[[Ledger], None],
        span: Span = no_span,
    ) -> None:
        self.ledger = start
        self._transport = transport
        self._bytes_per_expert = bytes_per_expert
        self._bytes_per_step = bytes_per_step
        self._rules = rules
        self._finished = finished
        self._publish = publish
        self._span = span
        self._carried = 0
        self._filled_epoch = 0
        self._step = 0
        self._left = start  # the ledger as the last round left it
        self.moves = 0

    @property
    def moved_bytes(self) -> int:
        """Bytes that arrived in slots of this rank."""
        return self._transport.received_bytes if self._transport is not None else 0

    def aim(self, goal: Placement, shares_LP: np.ndarray) -> None:
        """Begins the way to ``goal``. In the same round on every rank.

        Raises:
            ValueError: as `ledger.accept`, or weights would have to move and there is no transport.
        """
        if self._transport is None and goal != self.ledger.placement:
            raise ValueError("the plan moves weights, but the balancer was built with weights=None")
        self._enter(transitions.accept(self.ledger, goal, shares_LP, self._rules, self._step))

    def header(self) -> Sequence[int]:
        epoch, steps = self._finished()
        return (epoch, self._filled_epoch, steps)

    def act(self, headers_GW: Int64Array, link: Link) -> bool:
        epoch, filled_epoch, self._step = (int(word) for word in headers_GW.min(axis=0))
        has_carried = self._advance(epoch, filled_epoch, link)
        has_advanced = has_carried or self.ledger is not self._left
        self._left = self.ledger
        # What waits for steps of the engine waits in longer and longer pauses: they are not ours to make.
        return has_advanced and self.ledger.phase is not Phase.SETTLED

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _advance(self, epoch: int, filled_epoch: int, link: Link) -> bool:
        """Takes what every rank has reported; whether this round carried weights."""
        if self.ledger.phase is Phase.RETIRING and epoch >= self.ledger.epoch:
            self.ledger = transitions.retired(self.ledger, self._step)
            self._carried = 0
        if self.ledger.phase is not Phase.FILLING:
            return False
        if filled_epoch >= self.ledger.epoch:
            self.moves += len(self.ledger.batch)
            self._enter(transitions.filled(self.ledger, self._rules, self._step))
            return False
        return self._carry(link)

    def _carry(self, link: Link) -> bool:
        """Carries as many of the batch's fills as the budget of the steps made so far allows; whether any."""
        assert self._transport is not None, "aim() lets nothing move without a transport"
        steps = self._step - self.ledger.since_step + 1
        allowed = max(steps * self._bytes_per_step // max(self._bytes_per_expert, 1), 0)
        fills = self.ledger.batch[self._carried : allowed]
        if fills:
            with self._span(f"carry {len(fills)} experts", "heartbeat"):
                self._transport.carry(fills, link)
            self._carried += len(fills)
        if self._carried == len(self.ledger.batch):
            # Every rank carried its part of all fills, so what it says holds for its own slots.
            self._filled_epoch = self.ledger.epoch
        return bool(fills)

    def _enter(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._publish(ledger)
