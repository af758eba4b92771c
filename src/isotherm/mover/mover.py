"""The part of moving that talks: acknowledgements gathered, the ledger advanced, weights carried."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from isotherm.arrays import FloatArray, Int64Array
from isotherm.control import Link, Seen
from isotherm.errors import ProtocolError
from isotherm.mover import agreed
from isotherm.mover import ledger as transitions
from isotherm.mover.carrier import Carrier
from isotherm.mover.ledger import Ledger, Phase, Rules
from isotherm.mover.parcel import pack, unpack
from isotherm.mover.schedule import Fill
from isotherm.placement import Placement, Rounds

_CARRYING = (Phase.FILLING, Phase.STAGING)


class Mover:
    """Heartbeat participant that advances the ledger, the same on every rank.

    Args:
        start: the ledger of weights as loaded.
        rules: how the way is made, and what slots receive meanwhile.
        carrier: carries weights; None where weights never move, and goals must equal what is.
        bytes_per_expert, bytes_per_step: what a move weighs, and what may arrive per step of the
            engine, over all ranks. A batch's moves are carried as the budget grows.
        finished: reads ``(epoch, steps)`` of this rank: the newest tables with which a step is finished
            (done on its stream), and how many steps are. Never waits.
        publish: called when an epoch begins, with the ledger to build tables from. By the step word: its
            tables and the batch's buffers lie ready on every rank, to be taken up when all have told so.
        see: told of progress and of the end, on every rank in the same round.
        fail: told which ranks failed to carry, on every rank in the same round; the plan is called off
            before the round ends.
    """

    header_words = 5  # epoch finished, steps finished, chunks ended, chunks failed, turns of the ledger

    def __init__(
        self,
        start: Ledger,
        rules: Rules,
        carrier: Carrier | None,
        *,
        bytes_per_expert: int,
        bytes_per_step: int,
        finished: Callable[[], tuple[int, int]],
        publish: Callable[[Ledger], None],
        see: Callable[[Seen], None] = lambda seen: None,
        fail: Callable[[str], None] = lambda message: None,
    ) -> None:
        # What slots held before the newest epoch, and the newest. Replaced whole, and read by any thread.
        self._ledgers = (start, start)
        self._carrier = carrier
        self._bytes_per_expert = bytes_per_expert
        self._bytes_per_step = bytes_per_step
        self._rules = rules
        self._finished = finished
        self._publish = publish
        self._see = see
        self._fail = fail
        self._carried = 0  # fills of the batch that were started
        self._step = 0
        self._turns = 0
        self._left_turns = 0  # as the last round left them
        self._ended = 0  # chunks that every rank has seen end
        self._lead = 0  # chunks that other ranks have started beyond this one's, when a link broke
        self._failures_G: Int64Array | None = None
        self._is_off = False
        self.moves = 0

    @property
    def ledger(self) -> Ledger:
        """The newest. Any thread."""
        return self._ledgers[1]

    def ledger_in_force(self, epoch: int) -> Ledger:
        """What the slots of this rank hold while the tables of ``epoch`` are in force here. On the engine's
        thread, between steps."""
        before, newest = self._ledgers
        return before if newest.phase is Phase.AGREEING and epoch < newest.epoch else newest

    @property
    def moved_bytes(self) -> int:
        """Bytes that arrived in slots of this rank."""
        return self._carrier.received_bytes if self._carrier is not None else 0

    @property
    def is_clear(self) -> bool:
        """Whether no transfer of a plan that was called off is still under way on any rank, as far as the
        last round told: the same on every rank."""
        return self._carrier is None or self._ended == self._carrier.started + self._lead

    def aim(self, goal: Placement, shares_LP: FloatArray, rounds: Rounds) -> None:
        """Begins the way to ``goal``, from what is: whatever is under way is given up. In the same round on
        every rank. ``rounds`` order it, except where the step word does.

        Raises:
            ValueError: as `ledger.accept` and `agreed.accept`, or weights would have to move and there is no
                transport, or the ranks have still to agree on the tables of the plan before.
        """
        if self._carrier is None and goal != self.ledger.placement:
            raise ValueError("the plan moves weights, but the balancer was built with weights=None")
        self._give_up()
        self._is_off = False  # what was to be given up is: this plan is another
        if self.ledger.phase is not Phase.SETTLED:
            raise ValueError(
                f"the ranks have still to agree on the tables of epoch {self.ledger.epoch}: make another "
                "plan when they have"
            )
        if self._rules.by_word:
            self._enter(agreed.accept(self.ledger, goal, shares_LP, self._rules, self._step))
        else:
            self._enter(transitions.accept(self.ledger, goal, shares_LP, rounds, self._rules, self._step))

    def call_off(self) -> None:
        """Gives up the plan that is under way, in this round or the next in which the mover acts. On every
        rank, in the same round."""
        self._is_off = True

    def rejoin(self, link: Link) -> None:
        """Goes on from the ledger of the rank that made most turns, since all ranks had told what those rest
        on. Its tables are right beside those that others still have: only slots that were dead have changed.
        What it offered by the step word lies in the buffers of all. Nothing moves until all that was on its
        way has ended on every rank.
        """
        started = 0 if self._carrier is None else self._carrier.started
        words_GW = link.all_gather(np.array([self._turns, started, self.moves], np.int64))
        turns_G = words_GW[:, 0]
        _, most_started, self.moves = words_GW.max(axis=0).tolist()
        self._lead = most_started - started
        self._ended, self._failures_G = -1, None
        if (turns_G != turns_G[0]).any():
            source = int(turns_G.argmax())
            if link.rank == source:
                self._give_up()
            self._adopt(_carry_ledger(self.ledger, source, link), int(turns_G.max()) + 1)

    def _adopt(self, ledger: Ledger, turns: int) -> None:
        """Takes the ledger of another rank, which has called off what was under way."""
        self._enter(ledger)
        self._turns, self._carried, self._is_off = turns, 0, False

    def header(self) -> Sequence[int]:
        epoch, steps = self._finished()
        if self._carrier is None:
            return (epoch, steps, 0, 0, self._turns)
        # Ended first: what failed was counted before.
        ended = self._carrier.ended + self._lead
        return (epoch, steps, ended, self._carrier.failed, self._turns)

    def act(self, headers_GW: Int64Array, link: Link) -> bool:
        self._check_turns(headers_GW[:, 4])
        epoch, self._step, ended = (int(word) for word in headers_GW[:, :3].min(axis=0))
        before, self._ended = self._ended, ended
        self._check_failures(headers_GW[:, 3])
        if self._is_off:
            self._is_off = False
            self._give_up()
            return False
        turns, phase = self._turns, self.ledger.phase
        has_started = self._advance(epoch, link)
        if phase is not Phase.SETTLED and (self._turns != turns or ended > before):
            self._see(Seen.SETTLED if self.ledger.phase is Phase.SETTLED else Seen.PROGRESS)
        has_advanced = has_started or self._turns != self._left_turns
        self._left_turns = self._turns
        # What waits for steps of the engine, or for bytes, waits in longer and longer pauses.
        return has_advanced and self.ledger.phase is not Phase.SETTLED

    def close(self, timeout_seconds: float) -> None:
        """Waits for weights on their way, at most ``timeout_seconds``, and frees what carries them."""
        if self._carrier is not None:
            self._carrier.close(timeout_seconds)

    def _check_turns(self, turns_G: Int64Array) -> None:
        """A ledger that advanced on some ranks only (one of them ran out of memory in between, say) is
        never acted on again: what slots hold would not be known alike."""
        if (turns_G != turns_G[0]).any():
            raise ProtocolError(
                f"the ledgers of the ranks have made {turns_G.tolist()} turns: no weight is moved any more; "
                "restart the engine to balance again"
            )

    def _check_failures(self, failures_G: Int64Array) -> None:
        known_G, self._failures_G = self._failures_G, failures_G.copy()
        failed_G = failures_G > (0 if known_G is None else known_G)
        if failed_G.any() and self.ledger.phase in _CARRYING:
            self._is_off = True
            ranks = ", ".join(map(str, np.flatnonzero(failed_G).tolist()))
            self._fail(f"rank {ranks} could not carry its part of {len(self.ledger.batch)} experts")

    def _give_up(self) -> None:
        phase = self.ledger.phase
        if phase in (Phase.RETIRING, Phase.FILLING):
            self._enter(transitions.called_off(self.ledger, self._rules, self._step))
        elif phase is not Phase.SETTLED:
            self._enter(agreed.called_off(self.ledger, self._step))

    def _advance(self, epoch: int, link: Link) -> bool:
        """Takes what every rank has reported; whether this round started to carry weights."""
        ledger = self.ledger
        if ledger.phase is Phase.RETIRING and epoch >= ledger.epoch:
            self._enter(transitions.retired(ledger, self._step))
        elif ledger.phase is Phase.AGREEING and epoch >= ledger.epoch:
            self._enter(agreed.taken(ledger, self._rules, self._step))
        if self.ledger.phase not in _CARRYING:
            return False
        if self._carried < len(self.ledger.batch) or not self.is_clear:
            return self._carry(link)
        # Every rank has carried its part of all fills, so what they say holds for all slots.
        self.moves += len(self.ledger.batch)
        arrive = agreed.staged if self._rules.by_word else transitions.filled
        self._enter(arrive(self.ledger, self._rules, self._step))
        return False

    def _carry(self, link: Link) -> bool:
        """Starts as many of the batch's fills as the budget of the steps made so far allows, leg after leg;
        whether any."""
        assert self._carrier is not None, "aim() lets nothing move without a transport"
        # Until every rank has finished a step, what was enqueued before may still be: weights that load, say.
        steps = self._step - self.ledger.since_step + 1 if self._step else 0
        allowed = max(steps * self._bytes_per_step // max(self._bytes_per_expert, 1), 0)
        batch, before = self.ledger.batch, self._carried
        while fills := _same_leg(batch[self._carried : allowed]):
            self._carrier.start(fills, link)
            self._carried += len(fills)
        return self._carried > before

    def _enter(self, ledger: Ledger) -> None:
        """The next ledger; one that begins an epoch is published."""
        before, newest = self._ledgers
        self._ledgers = (before if ledger.epoch == newest.epoch else newest, ledger)
        self._carried = 0
        self._turns += 1
        if ledger.epoch != newest.epoch:
            self._publish(ledger)


def _same_leg(fills: Sequence[Fill]) -> tuple[Fill, ...]:
    """Those of the first one's leg."""
    return tuple(fill for fill in fills if fill.leg == fills[0].leg)


def _carry_ledger(ledger: Ledger, source: int, link: Link) -> Ledger:
    """The ledger of rank ``source``, on every rank."""
    data = pack(ledger) if link.rank == source else None
    size = link.all_gather(np.array([0 if data is None else len(data)], np.int64))[source, 0]
    return unpack(link.broadcast(data, int(size), source))
