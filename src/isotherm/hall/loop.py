"""Observe, plan, move: what is done beside the engine, on the heartbeat's thread and on the planner's."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from isotherm import planner
from isotherm.arrays import FloatArray, Int64Array
from isotherm.config import Config
from isotherm.control import Announcer, Callbacks, Limits, Link, PlanDesk, PlanLog, Promise, Seen, Span, Watch
from isotherm.decide import Decision, make_decision
from isotherm.decide import State as Mind
from isotherm.forward import ForwardPath
from isotherm.hall.explain import explain_window
from isotherm.hall.rooms import Rooms
from isotherm.mover import Ledger, Mover, Phase, Rules
from isotherm.placement import Placement, Plan, digest
from isotherm.planner.outlook.past import Past
from isotherm.status import Served, State
from isotherm.streams import Stream
from isotherm.topology import Topology
from isotherm.window import HeatWindow, ImbalanceSummary

logger = logging.getLogger("isotherm")


@dataclass(frozen=True, eq=False)
class _Made:
    """What an attempt to plan made of a window, and for which ledger."""

    mind: Mind
    decision: Decision
    window: HeatWindow
    ledger: Ledger


class Loop:
    """Turns windows into plans, and plans into moves, the same on every rank.

    It owns the four that take part in rounds for it: the state (``watch``), the desk where rank 0 plans, the
    announcer that carries plans, and the mover. All methods run on the heartbeat's thread, those under "the
    planner's thread" on that, and those under "anyone" on any.

    Args:
        rooms: what was built of heat, router and mover.
        start: the ledger of weights as loaded.
        make_stream: makes the host's stream on which rank 0 plans.
        poke: asks for a round soon.
    """

    def __init__(
        self,
        config: Config,
        topology: Topology,
        rooms: Rooms,
        start: Ledger,
        *,
        rank: int,
        limits: Limits,
        make_stream: Callable[[], Stream],
        poke: Callable[[], None],
        span: Span,
    ) -> None:
        self._config, self._topology, self._rooms, self._rank = config, topology, rooms, rank
        self._span = span
        self._forward: ForwardPath = rooms.forward
        self._make_state()
        self.watch = Watch(
            limits,
            rank=rank,
            step=self._step,
            call_off=self._call_off,
            on_round=self._on_round,
            on_rejoin=self._on_rejoin,
        )
        self.announcer = Announcer(digest, self._on_plan, self._on_refusal)
        self.desk = PlanDesk(
            make_stream,
            self._take_decision,
            announce=self.announcer.announce,
            on_begun=lambda: self.watch.see(Seen.PLANNING),
            on_ended=lambda: self.watch.see(Seen.DECIDED),
            on_failed=lambda: self.watch.fail("planner_raised", "rank 0 could not plan"),
            poke=poke,
        )
        self.mover = self._make_mover(start)

    def _make_state(self) -> None:
        self.windows = 0
        self.plans = 0
        self.imbalance: ImbalanceSummary | None = None
        self.served: Served | None = None
        self._planned: float | None = None
        self.on_window: Callbacks[HeatWindow] = Callbacks("on_window")
        self.on_decision: Callbacks[Decision] = Callbacks("on_decision")
        self._window: HeatWindow | None = None
        self._heat_LE: Int64Array | None = None
        self._is_asked_for = False
        self._is_held = False
        self._plan_log = PlanLog()
        # Rank 0's: windows that the mind has not seen, because something was under way when they came.
        self._unseen: deque[HeatWindow] = deque(maxlen=self._config.forecast_windows)
        self._past = Past()
        self._seen_step = 0  # the end of the newest window in it
        self._mode = self._config.mode  # of the newest attempt: another one may answer with yes

    def _make_mover(self, start: Ledger) -> Mover:
        rooms, config = self._rooms, self._config
        return Mover(
            start,
            Rules(self._topology, self._reshare, rooms.ways.step_word is not None, config.moves_in_flight),
            rooms.carrier,
            bytes_per_expert=rooms.bytes_per_expert,
            bytes_per_step=config.move_bytes_per_step,
            finished=rooms.forward.finished,
            publish=lambda ledger: rooms.publish(ledger, self._window),
            see=self._on_move,
            fail=lambda message: self.watch.fail("transfer_failed", message),
        )

    # -- the heartbeat's thread: windows and plans ---------------------------------------------------

    def _on_round(self) -> None:
        """Plans at once where somebody asked for it, degraded or not; or as soon as nothing is under way."""
        is_moving = self.watch.life.state is State.MOVING
        if self._is_asked_for and self._window is not None and not is_moving and self._may_plan:
            self._is_asked_for = False
            self._begin_planning(self._window, is_asked_for=True)

    def see_window(self, window: HeatWindow) -> None:
        """Takes in a window that was gathered, and plans on it unless something else is under way."""
        # First: shares on the way follow from it, which may not differ between ranks if one fails below.
        self._window = window
        self._heat_LE = window.heat_LE
        self.windows += 1
        if self._rank == 0:
            self._unseen.append(window)
        self.imbalance = ImbalanceSummary.of(window.load_LG, window.layer_ids)
        self.served = explain_window(window, self._in_force(), self._topology, self._planned)
        self._plan_log.see_window(window.start_step, window.end_step, self.imbalance.overall)
        self.watch.note_progress()
        if self.watch.life.state is State.OBSERVING and self._may_plan:
            self._begin_planning(window)
        self.on_window(window)

    def _in_force(self) -> Ledger:
        """What this rank routes by."""
        return self.mover.ledger_in_force(self._forward.epoch)

    @property
    def _may_plan(self) -> bool:
        """Whether rank 0 may begin an attempt. Not while a plan is on its way to the others: one that is made
        without it would replace it."""
        return self._rank == 0 and not (self._is_held or self.announcer.is_busy) and self.desk.is_free

    def _begin_planning(self, window: HeatWindow, *, is_asked_for: bool = False) -> None:
        ledger, earlier = self.mover.ledger, tuple(each for each in self._unseen if each is not window)
        is_other, self._mode = self._forward.mode != self._mode, self._forward.mode
        knows = window.end_step <= self._seen_step
        mind = self._mind(ledger, knows=knows, forgets_rests=is_asked_for or is_other)
        self.desk.begin(lambda: self._plan(mind, earlier, window, ledger))

    def _take_decision(self, made: _Made) -> bytes | None:
        """What an attempt that was not called off decided, on rank 0: the plan to announce, or None."""
        decision = made.decision
        self._past, self._seen_step = made.mind.past, made.window.end_step
        while self._unseen and self._unseen[0].end_step <= made.window.end_step:
            self._unseen.popleft()
        self.on_decision(decision)
        logger.debug("isotherm: step %d: %s", decision.step, decision.reason)
        if decision.plan is None or self._forward.mode not in ("shares", "full"):
            return None
        plan = decision.plan
        self._plan_log.announce(
            Promise(
                decision.step,
                before=decision.imbalance,
                promised=decision.predicted,
                moves=len(plan.moves),
                moved_bytes=len(plan.moves) * self._rooms.bytes_per_expert,
                reason=decision.reason,
            )
        )
        return made.ledger.identity.to_bytes(8, "little") + plan.to_bytes()

    def _on_plan(self, data: bytes) -> None:
        identity, plan = int.from_bytes(data[:8], "little"), Plan.from_bytes(data[8:])
        if identity != self.mover.ledger.identity or (plan.moves and not self.mover.is_clear):
            logger.info("isotherm: a plan was made for slots that have changed since; dropped")
            self._plan_log.call_off()
            self.watch.see(Seen.DECIDED)
            return
        try:
            self.mover.aim(plan.placement, plan.shares, plan.rounds)
        except ValueError as error:  # on every rank alike
            self.watch.fail("plan_refused", str(error))
            return
        self.plans += 1
        self._planned = float(plan.imbalance.mean())
        moves = self.mover.ledger.phase is not Phase.SETTLED
        self.watch.see(Seen.AIMED if moves else Seen.DECIDED)
        self._plan_log.accept(self._step(), is_settled=not moves)

    def _on_refusal(self, ranks: tuple[int, ...]) -> None:
        named = ", ".join(map(str, ranks))
        self.watch.fail("plan_refused", f"rank {named} received another plan than rank 0 announced")

    # -- the heartbeat's thread: moves ---------------------------------------------------------------

    def _on_move(self, seen: Seen) -> None:
        self.watch.see(seen)
        if seen is Seen.SETTLED:
            self._plan_log.settle(self._step())

    def _reshare(self, live: Placement) -> FloatArray:
        """The best shares while slots are retired or empty, for the newest heat: the same on every rank,
        since windows and plans are delivered in the same rounds."""
        if self._heat_LE is None:
            return live.even_shares()
        return planner.balanced_shares(self._heat_LE, live, self._topology)

    def _call_off(self) -> None:
        """Gives up whatever is under way: what is published stays, and the next plan starts from what is."""
        if self.mover.ledger.phase is not Phase.SETTLED:
            self._planned = None
        self.desk.call_off()
        self.announcer.call_off()
        self.mover.call_off()
        self._plan_log.call_off()

    def _on_rejoin(self, link: Link) -> None:
        """What ranks that were a round apart may know differently: the newest heat, and whether slots are
        refilled. One that is refilled somewhere holds all."""
        self._heat_LE = None
        self._is_held = bool(link.all_gather(np.array([self._is_held], np.int64)).any())

    def hold(self) -> None:
        """Gives up what is under way and begins nothing until `release`: slots are refilled. In the same
        round on every rank."""
        self._is_held = True
        self._call_off()
        if self.watch.life.state in (State.PLANNING, State.MOVING):
            self.watch.see(Seen.GIVEN_UP)

    def release(self) -> None:
        """Ends what `hold` began. In the same round on every rank."""
        self._is_held = False

    def close(self) -> None:
        """When no more rounds are made: says of a plan whose window has not ended what is known of it."""
        self._plan_log.close()

    # -- the planner's thread ------------------------------------------------------------------------

    def _plan(self, mind: Mind, earlier: tuple[HeatWindow, ...], window: HeatWindow, ledger: Ledger) -> _Made:
        """Shows the mind what it has not seen, and has it decide on ``window``. Changes nothing: what it
        returns may be discarded."""
        with self._span("plan", "planner"):
            for each in earlier:
                past = mind.past.with_window(each, self._config.forecast_windows)
                mind = replace(mind, past=past)
            mind, decision = make_decision(mind, window, self._step())
        return _Made(mind, decision, window, ledger)

    def _mind(self, ledger: Ledger, *, knows: bool, forgets_rests: bool) -> Mind:
        """``knows``: it was shown the newest window before. ``forgets_rests``: it is to look again at what it
        answered with no."""
        past = replace(self._past, refusal=None, calm=None) if forgets_rests else self._past
        return Mind(
            topology=self._topology,
            config=replace(self._config, mode=self._forward.mode),
            placement=ledger.placement,
            shares=ledger.shares,
            settled=ledger.phase is Phase.SETTLED,
            movable=self._rooms.is_movable and self.mover.is_clear,
            bytes_per_expert=self._rooms.bytes_per_expert,
            past=past,
            knows_window=knows,
        )

    # -- anyone --------------------------------------------------------------------------------------

    def ask(self) -> None:
        """Plans in the next round, on the newest window."""
        self._is_asked_for = self._rank == 0

    def _step(self) -> int:
        return self._rooms.collector.step
