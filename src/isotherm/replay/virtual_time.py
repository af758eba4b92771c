"""A trace served again, in virtual time: the mind decides after a window as it does beside an engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain

from isotherm.config import Config
from isotherm.decide import Decision, State, make_decision
from isotherm.placement import Placement
from isotherm.replay.ahead import made_ahead
from isotherm.replay.cluster import Cluster
from isotherm.replay.course import Course, Pace, aim, arrive
from isotherm.replay.report import ReplayReport, ReplayWindow
from isotherm.replay.serving import InForce, serve_window
from isotherm.replay.windows import continued
from isotherm.replay.yardstick import Yardstick
from isotherm.topology import MoEShape, Topology
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
    threads: int | None = None,
) -> ReplayReport:
    """Serves every window by what is in force, and lets `make_decision` say what changes after it.

    Nothing is decided here. Shares and moves answer to the window before: each is in force, or begins,
    ``delay_steps`` after the window that it was decided on. Moves take the steps that their bytes need
    within ``config.move_bytes_per_step``, in batches of ``config.moves_in_flight`` slots, which serve nobody
    meanwhile.

    Args:
        windows: in the order of time, of one shape; a few in memory at a time. Where steps are counted anew,
            as after a restart, the report counts on.
        cluster: ranks, links, and what a step and a move cost.
        config: as the balancer's; the modes ``shares`` and ``full`` change something. Link and step are taken
            from the cluster.
        placement: what the slots hold at the beginning, split evenly; None: slot ``p`` holds expert
            ``p % experts``.
        delay_steps: gathering, planning and spreading.
        with_yardstick: replay DeepSeek's balancer beside it, for the score.
        on_decision: called with each decision; the mind is not asked while moves are under way.
        threads: how many may work: on what does not depend on decisions, and on layers side by side. The
            report does not depend on it. None: as many as there are cores.

    Raises:
        ValueError: there is no window, its experts do not fit the slots, or the policy is unknown.
        PlanRefusedError: the policy returned a plan that breaks an invariant.
    """
    left = continued(windows)
    first = next(left, None)
    if first is None:
        raise ValueError("there is no window to replay")
    threads = (os.cpu_count() or 1) if threads is None else threads
    player = _Player(first, cluster, config, placement, delay_steps, threads)
    beside = _Beside(player.start, cluster.topology, with_yardstick)
    rows = []
    for window, unbalanced in made_ahead(chain([first], left), beside.serve, threads=threads):
        row, decision = player.play(window, unbalanced)
        rows.append(row)
        if on_decision is not None and decision is not None:
            on_decision(decision)
    yardstick = beside.yardstick
    measured = yardstick.time() if yardstick is not None and yardstick.replanned else None
    return ReplayReport(config.policy, cluster.expert_bytes, tuple(rows), measured)


class _Beside:
    """What hangs on no decision: a window served as the slots were at the beginning, and by DeepSeek's
    balancer."""

    def __init__(self, start: Placement, topology: Topology, with_yardstick: bool) -> None:
        self._start, self._shares_LP, self._topology = start, start.even_shares(), topology
        self.yardstick = Yardstick(start, topology) if with_yardstick else None

    def serve(self, window: HeatWindow) -> tuple[HeatWindow, float]:
        """The window, and its imbalance had nothing ever changed. Called with one window after the other."""
        if self.yardstick is not None:
            self.yardstick.add(window)
        static = InForce(window.start_step, window.end_step, self._start, self._shares_LP)
        return window, serve_window(window, [static], self._topology).overall


class _Player:
    """What a replay remembers from window to window."""

    def __init__(
        self,
        first: HeatWindow,
        cluster: Cluster,
        config: Config,
        placement: Placement | None,
        delay_steps: int,
        threads: int,
    ) -> None:
        layers, experts = first.heat_LE.shape
        shape, topology = MoEShape(layers, experts, 1), cluster.topology
        topology.check_holds(experts)
        self.start = Placement.default(shape, topology) if placement is None else placement
        self.start.check_fits(shape, topology)
        self._cluster, self._delay_steps = cluster, delay_steps
        self._pace = Pace(cluster, config.moves_in_flight, config.move_bytes_per_step)
        self._course = Course.start(self.start)
        self._newest_LE = first.heat_LE
        self._mind = State(
            topology=topology,
            config=cluster.configured(config),
            placement=self.start,
            shares=self._course.shares,
            settled=True,
            movable=topology.slots > experts,
            bytes_per_expert=cluster.expert_bytes,
            threads=threads,
        )

    def play(self, window: HeatWindow, unbalanced: float) -> tuple[ReplayWindow, Decision | None]:
        """Serves a window, then asks the mind."""
        before = self._course
        served = serve_window(window, self._spans(window), self._cluster.topology)
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
