"""What goes wrong ends by itself, in real processes: answers right, no wait, the state told as it is."""

import logging
import os
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from isotherm import Balancer, Config, MoEShape, State, Topology
from isotherm.control import Limits
from isotherm.streams import forward_path
from isotherm.testing.faults import fail_at
from isotherm.testing.wait_meter import no_waits
from ranks import run_ranks

SHAPE = MoEShape(2, 8, 2)
LIMITS = Limits(
    planning_steps=8,
    moving_steps=8,
    backoff_steps=12,
    longest_backoff_steps=48,
    stalled_steps=8,
    planning_seconds=0.3,
    moving_seconds=0.3,
    stalled_seconds=0.3,
)
# A busy machine leaves a rank alone for longer than a fault lasts: nothing else may be counted there.
PATIENT = replace(LIMITS, planning_seconds=2.0, moving_seconds=2.0, stalled_seconds=60.0)
ONLY_STALLED = replace(LIMITS, planning_seconds=60.0, moving_seconds=60.0)
FAULTS = [
    # what, on which rank, in which state; None: in any
    ("planner raises", 0, State.PLANNING),
    ("planner hangs", 0, State.OBSERVING),
    ("wrong digest", 0, None),
    ("wrong digest", 1, State.PLANNING),
    ("transfer fails", 0, State.MOVING),
    ("transfer fails", 1, State.DEGRADED),
    ("transfer late", 1, State.MOVING),
]
STEPS_AT_MOST = 4000


class Engine:
    """A rank whose weights all ranks can see, so that each checks every pair it routes, at that moment."""

    def __init__(self, rank, ranks, folder, limits=LIMITS):
        self.rank = rank
        self.topology = Topology.for_model(experts=8, redundant=-8 % ranks + ranks, ranks=ranks)
        slots = self.topology.slots_per_rank
        self.weights_G = [
            np.memmap(f"{folder}/weights{each}", np.float32, "r+", shape=(2, slots, 4))
            for each in range(ranks)
        ]
        for layer in range(2):
            own = (rank * slots + np.arange(slots)) % 8
            self.weights_G[rank][layer] = (own + 100 * layer)[:, None]
        dist.barrier()
        tensors = torch.from_numpy(self.weights_G[rank])
        config = Config(mode="full", window_steps=8, min_gain=0.0, heartbeat_seconds=0.002, moves_in_flight=2)
        self.balancer = Balancer(
            SHAPE,
            self.topology,
            group=dist.new_group(backend="gloo"),
            weights=[{"w": layer} for layer in tensors],
            config=config,
            limits=limits,
        )
        self.steps = self.wrong = 0

    def step(self):
        """One step: an expert is in nearly every token, another one every 30 steps, so that something is to
        move."""
        rng = np.random.default_rng([self.rank, self.steps])
        heat = np.ones(8)
        heat[self.steps // 30 * 3 % 8] = 50
        with forward_path():
            self.balancer.begin_step(20)
        for layer in range(2):
            ids = np.argsort(rng.random((20, 8)) / heat, axis=1)[:, :2].copy()
            with forward_path():
                slots = self.balancer.route(layer, torch.from_numpy(ids)).numpy()
            self.wrong += self.misrouted(layer, ids, slots)
        with forward_path():
            self.balancer.end_step()
            state = self.balancer.statistics().state
        self.steps += 1
        return state

    def misrouted(self, layer, ids, slots):
        """Pairs whose slot does not hold the weights of their expert, all of them, now."""
        every = np.concatenate([weights[layer] for weights in self.weights_G])
        return int((every[slots] != (ids + 100 * layer)[..., None]).any(axis=-1).sum())

    def is_everywhere(self, flag):
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, op=dist.ReduceOp.MIN)
        return bool(flags)

    def replicas_are_equal(self):
        held = self.balancer.placement.slot_to_expert
        every = np.concatenate(self.weights_G, axis=1)
        wanted = held + 100 * np.arange(2)[:, None]
        return bool(((every == wanted[..., None]).all(axis=2) | (held < 0)).all())


def live_through(engine, fault):
    """Steps until the fault happened, was told, and weights have moved again since. What lasts goes on until
    it is told."""
    fault.arm(engine.balancer)
    before = engine.balancer.statistics()
    seen, moves = set(), None
    for _ in range(STEPS_AT_MOST):
        seen.add(engine.step())
        time.sleep(0.001)
        now = engine.balancer.statistics()
        told = getattr(now.failures, fault.kind) > getattr(before.failures, fault.kind)
        if told and moves is None:
            moves = now.moves
            fault.end()
        recovered = told and now.moves > moves and now.state is not State.DEGRADED
        if engine.steps % 8 == 0 and engine.is_everywhere(recovered):
            break
    happened = fault.has_fired == (engine.rank == fault.rank)
    if fault.has_fired and fault.state is not None:
        happened = fault.struck_in is fault.state
    return happened, told, recovered, State.DEGRADED in seen, engine.wrong, now.failures.total


def suffer(rank, ranks, folder):
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append((record.levelname, record.getMessage()))
    logging.getLogger("isotherm").addHandler(handler)
    logging.getLogger("isotherm").setLevel(logging.INFO)
    engine = Engine(rank, ranks, folder, PATIENT)
    outcomes = []
    with no_waits() as meter:
        for what, on_rank, state in FAULTS:
            fault = fail_at(on_rank, engine.steps, what, seconds=60.0, state=state)
            outcomes.append(live_through(engine, fault))
    statistics = engine.balancer.statistics()
    engine.balancer.close()
    return outcomes, statistics, meter.waits, engine.replicas_are_equal(), records


def test_every_fault_ends_by_itself(tmp_path):
    ranks = 2
    make_weight_files(tmp_path, ranks)
    results = run_ranks(suffer, ranks, tmp_path, ranks, str(tmp_path))
    for outcomes, statistics, waits, replicas, records in results:
        for fault, outcome in zip(FAULTS, outcomes, strict=True):
            happened, told, recovered, was_degraded, wrong, _ = outcome
            assert (happened, told, recovered, was_degraded, wrong) == (True, True, True, True, 0), fault
        assert waits == []
        assert statistics.waits == 0
        assert replicas
        assert statistics.failures == results[0][1].failures
        assert statistics.failures.total == len(FAULTS)
        warnings = [text for level, text in records if level == "WARNING" and "degraded at step" in text]
        assert len(warnings) == len(FAULTS)  # once for each
        assert sum("balancing again" in text for _, text in records) == len(FAULTS)
    plans = [text for _, text in results[0][4] if text.startswith("isotherm: plan ")]
    assert any("called off" in text for text in plans)
    assert any(", achieved 1." in text for text in plans)
    assert not any(text.startswith("isotherm: plan ") for _, text in results[1][4])


def make_weight_files(folder, ranks):
    slots = Topology.for_model(experts=8, redundant=-8 % ranks + ranks, ranks=ranks).slots_per_rank
    for rank in range(ranks):
        (folder / f"weights{rank}").write_bytes(bytes(2 * slots * 4 * 4))


def freeze_and_die(rank, folder):
    """Rank 1 is stopped for a while: the engine of rank 0 makes no collective, so it goes on. At the end
    rank 1 dies in the middle of a step."""
    engine = Engine(rank, 2, folder, ONLY_STALLED)
    fail_at(1, 40, "rank pauses", seconds=1.5).arm(engine.balancer)
    states, since = [], set()
    while engine.steps < 300:
        states.append(engine.step())
        if states[-1] is State.DEGRADED:
            since.add(engine.balancer.statistics().since_step)
        time.sleep(0.006)
    windows = engine.balancer.statistics().windows
    resumed = False
    for _ in range(STEPS_AT_MOST):
        engine.step()
        resumed = engine.balancer.statistics().windows > windows
        if engine.is_everywhere(resumed):
            break
    frozen = states, since, resumed, engine.balancer.statistics()
    return *frozen, *die(engine)


def die(engine):
    """What the survivor's own collective says, and how it ends."""
    engine.step()
    if engine.rank == 1:
        os._exit(0)
    try:
        engine.is_everywhere(True)
    except RuntimeError as error:
        said = str(error)
    for step in range(STEPS_AT_MOST):  # an engine that goes on in spite of it
        if engine.step() is State.DEGRADED and step >= 20:
            break
        time.sleep(0.005)
    statistics = engine.balancer.statistics()
    engine.balancer.close(5)
    return said, statistics, engine.wrong


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="the system has no SIGSTOP")
def test_a_rank_that_pauses_is_told_and_one_that_is_killed_leaves_the_error_to_the_engine(tmp_path):
    make_weight_files(tmp_path, 2)
    survivor, dead = run_ranks(freeze_and_die, 2, tmp_path, str(tmp_path))
    assert dead is None
    states, since, resumed, statistics, said, after, wrong = survivor
    stalled = [index for index, state in enumerate(states) if state is State.DEGRADED]
    assert stalled, "nobody noticed"
    assert stalled == list(range(stalled[0], stalled[-1] + 1))
    assert len(since) == 1  # since when does not move
    assert 0 <= min(since) <= stalled[0] - 8
    assert (statistics.failures.stalled, statistics.failures.total) == (1, 1)
    assert statistics.state is not State.DEGRADED
    assert resumed
    assert "by peer" in said  # gloo's own words: closed, or reset
    assert after.state is State.DEGRADED
    assert (after.failures.link_lost, after.failures.total) == (1, 2)
    assert (after.waits, wrong) == (0, 0)


@pytest.mark.parametrize(
    ("rank", "what", "message"),
    [(0, "nonsense", "unknown: choose one of planner raises"), (1, "planner hangs", "rank 0 plans")],
)
def test_a_fault_that_cannot_happen_is_refused(rank, what, message):
    with pytest.raises(ValueError, match=message):
        fail_at(rank, 0, what)
