"""What the loop beside the engine does with windows, on one rank and in line."""

import numpy as np
import pytest
import torch

from isotherm import Balancer, Config, MoEShape, Topology
from isotherm.control import Seen
from isotherm.hall import loop
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
