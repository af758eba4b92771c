"""Balancers whose link breaks in the middle of a round, which one rank takes in and the others do not:
threads of one process stand for the ranks, with real groups of gloo between them."""

import threading
import time
from datetime import timedelta

import numpy as np
import pytest
import torch
from torch.distributed import HashStore, PrefixStore, ProcessGroupGloo

from isotherm import Balancer, Config, MoEShape, State, Topology
from isotherm.control import GroupLink, Limits
from isotherm.testing.faults import fail_at
from ranks import LOOPBACK

RANKS = 3
SHAPE = MoEShape(2, 8, 2)
TOPOLOGY = Topology.for_model(experts=8, redundant=4, ranks=RANKS)
CONFIG = Config(mode="full", window_steps=4, min_gain=0.0, heartbeat_seconds=0.001, moves_in_flight=2)
LIMITS = Limits(
    planning_steps=200,
    moving_steps=200,
    backoff_steps=4,
    longest_backoff_steps=16,
    stalled_steps=10**6,
)
STEPS_AT_MOST = 4_000


class Ranks:
    """All ranks of an engine, which make their steps one after the other, so that each sees all weights."""

    def __init__(self):
        store = HashStore()
        slots = TOPOLOGY.slots_per_rank
        self.weights_LP = torch.arange(TOPOLOGY.slots).remainder(8) + torch.tensor([[0], [100]])
        self.balancers = [None] * RANKS
        self.windows = [[] for _ in range(RANKS)]
        self.counted = [np.zeros((2, 8), np.int64)]
        self.steps = self.wrong = 0

        def build(rank):
            group = ProcessGroupGloo(PrefixStore("first", store), rank, RANKS, timedelta(seconds=60))
            own = self.weights_LP[:, rank * slots : (rank + 1) * slots]
            self.balancers[rank] = Balancer(
                SHAPE,
                TOPOLOGY,
                group=GroupLink(group),
                weights=[{"w": layer[:, None]} for layer in own],
                config=CONFIG,
                limits=LIMITS,
                store=store,
            )
            self.balancers[rank].on_window(self.windows[rank].append)

        self.on_all(build)

    def on_all(self, function):
        threads = [threading.Thread(target=function, args=(rank,)) for rank in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(90)
            assert not thread.is_alive()

    def step(self):
        """An expert is in most tokens, another one every 12 steps. Every pair is looked at when routed."""
        counts = self.counted[-1].copy()
        heat = np.ones(8)
        heat[self.steps // 12 * 3 % 8] = 50
        for rank, balancer in enumerate(self.balancers):
            rng = np.random.default_rng([rank, self.steps])
            with balancer.step(16):
                for layer in range(2):
                    ids = np.argsort(rng.random((16, 8)) / heat, axis=1)[:, :2].copy()
                    slots = balancer.route(layer, torch.from_numpy(ids))
                    held = self.weights_LP[layer][slots].numpy()
                    self.wrong += int((held != ids + 100 * layer).sum())
                    np.add.at(counts[layer], ids.ravel(), 1)
        self.counted.append(counts)
        self.steps += 1
        self.await_windows()

    def await_windows(self):
        """Lets the heartbeats keep up, where they can: windows of many steps have no hot expert."""
        deadline = time.monotonic() + 0.02
        while time.monotonic() < deadline and any(
            balancer.statistics().gathered_step < self.steps - 4 for balancer in self.balancers
        ):
            time.sleep(0.0005)

    def live_through(self, ahead, step, breaks):
        """Steps until the link broke for the ``breaks``-th time and weights moved again."""
        for balancer in self.balancers:
            fail_at(ahead, step, "link breaks").arm(balancer)
        moves = None
        for _ in range(STEPS_AT_MOST):
            self.step()
            statistics = [balancer.statistics() for balancer in self.balancers]
            if moves is None and all(each.failures.link_lost == breaks for each in statistics):
                moves = max(each.moves for each in statistics)
            if moves is not None and all(
                each.moves > moves and each.state is not State.DEGRADED for each in statistics
            ):
                return
        raise AssertionError("weights did not move again")

    def close(self):
        self.on_all(lambda rank: self.balancers[rank].close(60))


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", LOOPBACK)


@pytest.mark.parametrize("seed", range(2))
def test_balancing_goes_on_over_another_link_from_what_slots_hold(seed):
    ranks = Ranks()
    rng = np.random.default_rng(seed)
    for breaks in range(1, 4):
        rank, wait = int(rng.integers(RANKS)), int(rng.integers(1, 24))
        ranks.live_through(rank, ranks.steps + wait, breaks)
    ranks.close()
    check(ranks)


def check(ranks):
    assert ranks.wrong == 0
    statistics = [balancer.statistics() for balancer in ranks.balancers]
    assert len({each.moves for each in statistics}) == 1
    assert {each.failures.link_lost for each in statistics} == {3}
    assert {each.failures.total for each in statistics} == {3}
    placements = [balancer.placement for balancer in ranks.balancers]
    assert all(placement == placements[0] for placement in placements)
    held = torch.from_numpy(placements[0].slot_to_expert.astype(np.int64))
    is_right = (ranks.weights_LP == held + torch.tensor([[0], [100]])) | (held < 0)
    assert bool(is_right.all())
    for windows in ranks.windows:
        assert len(windows) > 10
        for window in windows:
            counted = ranks.counted[window.end_step] - ranks.counted[window.start_step]
            assert (window.heat_LE == counted).all()
            assert window.load_LG.sum() == window.heat_LE.sum()
