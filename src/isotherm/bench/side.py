"""What the background threads do while the engine steps and no snapshot is due."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import torch.distributed as dist

from isotherm.balancer import Balancer
from isotherm.bench.clocks import has_thread_clocks, our_threads, thread_cpu_ns
from isotherm.bench.engine import EP2, TOKENS, SyntheticEngine
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.traffic import SHAPE
from isotherm.config import Config

_TITLE = "CPU time of side threads between two snapshots"
_NOTE = (
    "CPU clocks of a balancer's own threads, around steps of which none is a snapshot and in which no round "
    "of the heartbeat falls: rounds come by the clock, not by the step. What one idle round takes, outside "
    "gloo's own threads, is told apart; a round that finds nothing to do doubles the pause before the next, "
    "from 0.02 s up to 1 s."
)
_PAUSE_SECONDS = 1.0
_SPAN_SECONDS = 0.9  # steps that take longer may see the next round begin
_STEPS = 16
_NEVER = 2**30  # steps to the next snapshot


def measure_side_threads(*, quick: bool) -> Section:
    """Seconds that the threads of a balancer take while it steps. Called on every rank."""
    if not has_thread_clocks():
        return Section(_TITLE, "This system does not show the CPU time of one thread to another.", ())
    engine = SyntheticEngine(dist.get_rank(), quick=quick)
    busy: dict[str, int] = {}
    spans, rounds_ns = 0, []
    with _balancer() as balancer:
        threads = our_threads()
        _await_round(balancer)
        for _ in range(1 if quick else 5):
            before, begun = _clocks(threads), time.monotonic()
            _run_steps(engine, balancer)
            is_between = time.monotonic() - begun < _SPAN_SECONDS
            between = _clocks(threads)
            _await_round(balancer)
            rounds_ns.append(thread_cpu_ns(threads["heartbeat"]) - between["heartbeat"])
            if is_between:
                spans += 1
                busy = {name: busy.get(name, 0) + between[name] - before[name] for name in threads}
    return side_section(spans * _STEPS, busy, rounds_ns)


def side_section(steps: int, busy: dict[str, int], rounds_ns: list[int]) -> Section:
    """What the threads took, in nanoseconds, while ``steps`` were made between rounds, and in idle rounds.
    Without steps nothing was seen, so there is no target to reach."""
    figures = [Figure.exact(f"{steps} steps", f"thread {name}", "ms", ns / 1e6) for name, ns in busy.items()]
    figures.append(Figure.of("an idle round", "thread heartbeat", "ms", [ns / 1e6 for ns in rounds_ns]))
    if not steps:
        note = "The machine was so slow that rounds of the heartbeat fell into every span of steps."
        return Section(_TITLE, note, tuple(figures))
    target = Target("seconds of side threads between snapshots", sum(busy.values()) / 1e9, 0.0)
    return Section(_TITLE, _NOTE, tuple(figures), (target,))


@contextmanager
def _balancer() -> Iterator[Balancer]:
    """Its heartbeat pauses for a second, which leaves time for steps between two rounds."""
    config = Config(mode="observe", window_steps=_NEVER, slices=1, heartbeat_seconds=_PAUSE_SECONDS)
    group = dist.new_group(backend="gloo")
    balancer = Balancer(SHAPE, EP2, group=group, weights=None, config=config)
    try:
        yield balancer
    finally:
        balancer.close()


def _await_round(balancer: Balancer) -> None:
    """Returns when a round has just ended, and its thread has gone to sleep."""
    rounds = balancer.statistics().rounds
    while balancer.statistics().rounds == rounds:
        time.sleep(0.002)
    time.sleep(0.05)


def _run_steps(engine: SyntheticEngine, balancer: Balancer) -> None:
    for _ in range(_STEPS):
        batch = engine.begin_step()
        with balancer.step(TOKENS, num_decode_tokens=TOKENS):
            for layer in range(SHAPE.layers):
                if layer % 8 == 0:
                    engine.work()
                balancer.route(layer, engine.ids[batch + layer])


def _clocks(threads: dict[str, Thread]) -> dict[str, int]:
    return {name: thread_cpu_ns(thread) for name, thread in threads.items()}
