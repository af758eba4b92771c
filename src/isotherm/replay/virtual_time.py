"""A trace served again, in virtual time: the mind decides after a window as it does beside an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from isotherm.config import Config
from isotherm.decide import Decision, State, make_decision
from isotherm.placement import Placement
from isotherm.replay.cluster import Cluster
from isotherm.replay.course import Course, Pace, aim, arrive
from isotherm.replay.report import ReplayReport, ReplayWindow
from isotherm.replay.serving import InForce, serve_window
from isotherm.replay.yardstick import Yardstick
from isotherm.topology import MoEShape
from isotherm.window import HeatWindow

_UNDER_WAY = "moves are under way"


def replay_trace(
    windows: Iterable[HeatWindow],
    cluster: Cluster,
    config: Config,
    *,
    placement: Placement | None = None,
    delay_steps: int = 0,
    with_yardstick: bool = True,
    on_decision: Callable[[Decision], None] | None = None,
) -> ReplayReport:
    """Serves every window by what is in force, and lets `make_decision` say what changes after it.

    Nothing is decided here. Shares and moves answer to the window before: each is in force, or begins,
    ``delay_steps`` after the window that it was decided on. Moves take the steps that their bytes need
    within ``config.move_bytes_per_step``, in batches of ``config.moves_in_flight`` slots, which serve nobody
    meanwhile.

    Args:
        windows: in the order of time, of one shape; read one at a time.
        cluster: ranks, links, and what a step and a move cost.
        config: as the balancer's; the modes ``shares`` and ``full`` change something. Link and step are taken
            from the cluster.
        placement: what the slots hold at the beginning, split evenly; None: slot ``p`` holds expert
            ``p % experts``.
        delay_steps: gathering, planning and spreading.
        with_yardstick: replay DeepSeek's balancer beside it, for the score.
        on_decision: called with each decision; the mind is not asked while moves are under way.

    Raises:
        ValueError: there is no window, its experts do not fit the slots, or the policy is unknown.
        PlanRefusedError: the policy returned a plan that breaks an invariant.
    """
    player: _Player | None = None
    rows = []
    for window in windows:
        if player is None:
            player = _Player(window, cluster, config, placement, delay_steps, with_yardstick)
        row, decision = player.play(window)
        rows.append(row)
        if on_decision is not None and decision is not None:
            on_decision(decision)
    if player is None:
        raise ValueError("there is no window to replay")
    yardstick = player.yardstick
    measured = yardstick.time() if yardstick is not None and yardstick.replanned else None
    return ReplayReport(config.policy, cluster.expert_bytes, tuple(rows), measured)


class _Player:
    """What a replay remembers from window to window."""

    def __init__(
        self,
        first: HeatWindow,
        cluster: Cluster,
        config: Config,
        placement: Placement | None,
        delay_steps: int,
        with_yardstick: bool,
    ) -> None:
        layers, experts = first.heat_LE.shape
        shape, topology = MoEShape(layers, experts, 1), cluster.topology
        topology.check_holds(experts)
        start = Placement.default(shape, topology) if placement is None else placement
        start.check_fits(shape, topology)
        self._cluster, self._delay_steps = cluster, delay_steps
        self._pace = Pace(cluster, config.moves_in_flight, config.move_bytes_per_step)
        self._start, self._course = start, Course.start(start)
        self._newest_LE = first.heat_LE
        self._mind = State(
            topology=topology,
            config=cluster.configured(config),
            placement=start,
            shares=self._course.shares,
            settled=True,
            movable=topology.slots > experts,
            bytes_per_expert=cluster.expert_bytes,
        )
        self.yardstick = Yardstick(start, topology) if with_yardstick else None

    def play(self, window: HeatWindow) -> tuple[ReplayWindow, Decision | None]:
        """Serves a window, then asks the mind."""
        before = self._course
        served = serve_window(window, self._spans(window), self._cluster.topology)
        static = InForce(window.start_step, window.end_step, self._start, self._start.even_shares())
        unbalanced = serve_window(window, [static], self._cluster.topology).overall
        if self.yardstick is not None:
            self.yardstick.add(window)
        decision = self._decide(window)
        row = ReplayWindow(
            start_step=window.start_step,
            end_step=window.end_step,
            imbalance=served.overall,
            par=served.par,
            unbalanced=unbalanced,
            moves=self._course.moves - before.moves,
            moving_seconds=self._course.moving_seconds - before.moving_seconds,
            saved_seconds=self._cluster.saved_seconds(window.steps, unbalanced, served.overall),
            action="nothing" if decision is None else decision.action,
            reason=_UNDER_WAY if decision is None else decision.reason,
        )
        return row, decision

    def _spans(self, window: HeatWindow) -> list[InForce]:
        """What is in force while the window lasts; the course is at its end afterwards."""
        spans, start = [], window.start_step
        while (ready := self._course.ready_step) is not None and ready < window.end_step:
            if ready > start:
                spans.append(InForce(start, ready, self._course.placement, self._course.shares))
                start = ready
            self._course = arrive(self._course, self._newest_LE, self._pace)
        spans.append(InForce(start, window.end_step, self._course.placement, self._course.shares))
        return spans

    def _decide(self, window: HeatWindow) -> Decision | None:
        """What the mind says; None while moves are under way, when the balancer does not ask it either."""
        course, self._newest_LE = self._course, window.heat_LE
        if course.ready_step is not None:
            return None
        state = replace(self._mind, placement=course.placement, shares=course.shares)
        self._mind, decision = make_decision(state, window, window.end_step)
        if decision.plan is not None and self._mind.config.mode in ("shares", "full"):
            step = window.end_step + self._delay_steps
            self._course = aim(course, decision.plan, step, self._newest_LE, self._pace)
        return decision
