"""Ways of collecting heat, each as an arm of one experiment: what it does in a layer and at a step's end."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist

from isotherm.balancer import Balancer
from isotherm.bench.engine import EP2, TOKENS, SyntheticEngine
from isotherm.bench.traffic import SHAPE
from isotherm.config import Mode
from isotherm.heat import HeatCollector
from isotherm.heat.aside import TorchDeviceGroup
from isotherm.status import State
from isotherm.streams import backend_for
from isotherm.testing.reverted import RevertedHeat


def _nothing() -> None:
    return


@dataclass(frozen=True)
class Arm:
    """One way to collect.

    ``prepare`` and ``settle`` come before and after a block of steps and are not timed: the one chooses what
    is collected, the other waits for what is under way, so that it takes nothing from the next block.
    ``layer`` is given the index of the layer and of its batch.
    """

    name: str
    layer: Callable[[int, int], object]
    begin_step: Callable[[], object] = _nothing
    end_step: Callable[[], object] = _nothing
    prepare: Callable[[], object] = _nothing
    settle: Callable[[], object] = _nothing

    def run_steps(self, engine: SyntheticEngine, steps: int) -> None:
        """Makes steps of the engine that collect in this way."""
        layers = range(SHAPE.layers)
        for _ in range(steps):
            batch = engine.begin_step()
            self.begin_step()
            for layer in layers:
                engine.work()
                self.layer(layer, batch + layer)
            self.end_step()


def plain_arm(name: str) -> Arm:
    """The engine alone."""
    return Arm(name, lambda layer, batch: None)


def balancer_arm(
    name: str, balancer: Balancer, engine: SyntheticEngine, *, mode: Mode, snapshot_steps: int
) -> Arm:
    """The engine routes by ``balancer``, which is in ``mode``."""
    ids = engine.ids

    def is_settled() -> bool:
        """Whether the last snapshot is gathered, and what rank 0 made of it thought through."""
        statistics = balancer.statistics()
        due = statistics.steps // snapshot_steps * snapshot_steps
        return statistics.gathered_step >= due and statistics.state is State.OBSERVING

    return Arm(
        name,
        layer=lambda layer, batch: balancer.route(layer, ids[batch]),
        begin_step=lambda: balancer.begin_step(TOKENS, num_decode_tokens=TOKENS),
        end_step=balancer.end_step,
        prepare=lambda: balancer.set_mode(mode),
        settle=lambda: _await(is_settled) if mode == "observe" else None,
    )


def received_arm(name: str, collector: HeatCollector, engine: SyntheticEngine, *, snapshot_steps: int) -> Arm:
    """The engine hands over what its slots received."""
    received = engine.received
    return _collector_arm(
        name, collector, lambda layer, batch: collector.count(layer, received[batch]), snapshot_steps
    )


def counting_arm(name: str, collector: HeatCollector, engine: SyntheticEngine) -> Arm:
    """As `received_arm`, and no snapshot is taken."""
    received = engine.received
    return Arm(
        name,
        layer=lambda layer, batch: collector.count(layer, received[batch]),
        end_step=lambda: collector.advance(num_tokens=TOKENS, num_decode=0, snapshots=False),
    )


def ids_arm(name: str, collector: HeatCollector, engine: SyntheticEngine, *, snapshot_steps: int) -> Arm:
    """The engine hands over what its tokens chose."""
    ids = engine.ids
    return _collector_arm(
        name, collector, lambda layer, batch: collector.count_ids(layer, ids[batch]), snapshot_steps
    )


def _collector_arm(
    name: str, collector: HeatCollector, layer: Callable[[int, int], object], snapshot_steps: int
) -> Arm:
    return Arm(
        name,
        layer=layer,
        end_step=lambda: collector.end_step(num_tokens=TOKENS),
        settle=lambda: _await(
            lambda: collector.gathered_step >= collector.step // snapshot_steps * snapshot_steps
        ),
    )


@contextmanager
def reverted_heat() -> Iterator[RevertedHeat]:
    """The design that was taken back, over a group of its own."""
    group = TorchDeviceGroup(dist.new_group(backend="gloo"))
    reverted = RevertedHeat(SHAPE.layers, EP2.slots_per_rank, group, backend_for("cpu"))
    try:
        yield reverted
    finally:
        reverted.close()


def reverted_arm(name: str, reverted: RevertedHeat, engine: SyntheticEngine, *, gather_steps: int) -> Arm:
    """The engine hands over what its slots received, and gathers every ``gather_steps``."""
    received = engine.received
    steps = itertools.count(1)

    def end_step() -> None:
        if next(steps) % gather_steps == 0:
            reverted.gather()

    return Arm(name, layer=lambda layer, batch: reverted.count(layer, received[batch]), end_step=end_step)


def _await(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.001)
    # Whatever the last round still does after it was seen.
    time.sleep(0.005)
