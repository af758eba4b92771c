"""What the loop beside the engine does with windows, on one rank and in line."""

import logging

import numpy as np
import pytest
import torch

from isotherm import Balancer, Config, MoEShape, State, Topology
from isotherm.control import Seen
from isotherm.decide import Decision
from isotherm.hall import loop
from isotherm.placement import Plan
from memory_link import memory_links

SHAPE = MoEShape(2, 8, 2)
TOPOLOGY = Topology(ranks=1, slots_per_rank=10)


@pytest.fixture
def balancer():
    (link,) = memory_links(1)
    config = Config(mode="observe", window_steps=4, slices=2, forecast_windows=5)
    made = Balancer(SHAPE, TOPOLOGY, group=link, weights=None, config=config, inline=True)
    yield made
    made.close()


def serve(balancer, windows):
    for _ in range(4 * windows):
        step = balancer.statistics().steps
        ids = np.random.default_rng(step).integers(0, 8, (20, 2))
        with balancer.step(20):
            for layer in range(2):
                balancer.route(layer, torch.from_numpy(ids))


def seen_by_the_mind(monkeypatch):
    """Windows remembered when a decision is asked for, the one that it is asked on included."""
    asked, real = [], loop.make_decision

    def ask(mind, window, clock):
        after, decision = real(mind, window, clock)
        asked.append((window.end_step, len(after.past.glimpses)))
        return after, decision

    monkeypatch.setattr(loop, "make_decision", ask)
    return asked


def test_windows_that_come_while_weights_move_are_remembered_without_planning(balancer, monkeypatch):
    asked = seen_by_the_mind(monkeypatch)
    serve(balancer, 1)
    balancer._loop.watch.see(Seen.AIMED)
    serve(balancer, 2)
    assert asked == [(4, 1)]
    balancer._loop.watch.see(Seen.SETTLED)
    serve(balancer, 2)
    assert asked == [(4, 1), (16, 4), (20, 5)]


def test_windows_of_an_attempt_that_raised_are_shown_again_and_no_more_than_are_remembered(
    balancer, monkeypatch
):
    asked = seen_by_the_mind(monkeypatch)
    with monkeypatch.context() as context:
        context.setattr(loop, "make_decision", lambda *args: 1 / 0)
        serve(balancer, 1)
        balancer._heartbeat.beat()  # which tells
    assert balancer.statistics().failures.planner_raised == 1
    balancer._loop.watch.see(Seen.AIMED)
    serve(balancer, 7)
    assert asked == []
    balancer._loop.watch.see(Seen.SETTLED)
    serve(balancer, 1)
    assert asked == [(36, 5)]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_memory_tells_what_weights_pass_through(device):
    told = [
        Balancer.memory(SHAPE, TOPOLOGY, bytes_per_expert=size, device=device).pinned_bytes
        for size in (0, 1000)
    ]
    assert told[1] - told[0] == (0 if device == "cpu" else 4 * 1000)


def test_the_same_window_asked_about_again_is_not_taken_for_another(balancer, monkeypatch):
    asked = seen_by_the_mind(monkeypatch)
    serve(balancer, 2)
    for _ in range(3):
        balancer.rebalance()
        for _ in range(3):
            balancer._heartbeat.beat()
    serve(balancer, 1)
    assert asked == [(4, 1), (8, 2), (8, 2), (8, 2), (8, 2), (12, 3)]


@pytest.mark.parametrize(
    ("act", "rests"),
    [
        (lambda balancer: None, True),
        (lambda balancer: balancer.rebalance(), False),
        (lambda balancer: balancer.set_mode("shares"), False),
    ],
    ids=["left alone", "asked by hand", "in another mode"],
)
def test_what_was_answered_with_no_is_looked_at_again(balancer, act, rests):
    """Of traffic that stays as it is the seventh window lies in the midst of a rest."""
    decisions = []
    balancer.on_decision(decisions.append)
    ids = torch.arange(8).repeat(20)[:, None].expand(-1, 2).contiguous()
    while len(decisions) < 7:
        if len(decisions) == 6:
            act(balancer)
        with balancer.step(160):
            for layer in range(2):
                balancer.route(layer, ids)
    assert ("nothing has changed" in decisions[6].reason) == rests


def shares_again(mind, clock):
    """A plan that changes nothing."""
    plan = Plan(mind.placement, mind.shares, (), np.ones(2), np.ones(2), "again", SHAPE.ids)
    return Decision("shares", plan, "again", clock, 1.0, 1.0)


def test_a_plan_has_its_line_though_the_balancer_is_closed_first(balancer, monkeypatch, caplog):
    monkeypatch.setattr(loop, "make_decision", lambda mind, window, clock: (mind, shares_again(mind, clock)))
    balancer.set_mode("shares")
    with caplog.at_level(logging.DEBUG):
        serve(balancer, 1)
        for _ in range(3):
            balancer._heartbeat.beat()
        balancer.close()
    lines = [record.message for record in caplog.records if "isotherm: plan 1 of" in record.message]
    assert len(lines) == 1
    assert "achieved not measured: the balancer was closed first" in lines[0]


def test_no_plan_is_made_while_another_is_on_its_way_to_the_others(monkeypatch):
    """New shares made then would end the moves of the plan before as soon as it is taken on, and the state
    would say that weights move until that is called late."""
    (link,) = memory_links(1)
    config = Config(mode="shares", window_steps=1, slices=1)
    balancer = Balancer(SHAPE, TOPOLOGY, group=link, weights=None, config=config, inline=True)
    under_way = []

    def decide(mind, window, clock):
        under_way.append(balancer._loop.announcer.is_busy)
        return mind, shares_again(mind, clock)

    monkeypatch.setattr(loop, "make_decision", decide)
    serve(balancer, 3)
    balancer.close()
    assert balancer.statistics().plans > 3
    assert len(under_way) > 3
    assert not any(under_way)


def test_what_the_engine_is_told_with_may_raise(balancer, caplog):
    def refuse(told):
        raise OSError("no space left on device")

    windows, decisions = [], []
    for tell, told in ((balancer.on_window, windows), (balancer.on_decision, decisions)):
        for callback in (told.append, refuse, told.append):
            tell(callback)
    with caplog.at_level(logging.ERROR):
        serve(balancer, 4)
    assert balancer.statistics().windows == 4
    assert balancer.statistics().failures.total == 0
    for told in (windows, decisions):
        assert told
        assert all(first is second for first, second in zip(told[::2], told[1::2], strict=True))
    assert [record.message.split("'s callback")[0] for record in caplog.records] == [
        "isotherm: on_window",
        "isotherm: on_decision",
    ]


def test_what_fails_with_a_window_is_told(balancer, monkeypatch):
    monkeypatch.setattr(loop, "explain_window", lambda *args: 1 / 0)
    serve(balancer, 1)
    balancer._heartbeat.beat()  # which tells
    statistics = balancer.statistics()
    assert (statistics.failures.room_failed, statistics.state) == (1, State.DEGRADED)
