"""Heat collected on the simulated device, with a heartbeat that comes when the schedule likes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from isotherm.arrays import Int32Array, Int64Array
from isotherm.control import Heartbeat
from isotherm.heat import HeatCollector
from isotherm.placement import Placement
from isotherm.testing.programs.parts import LoneLink, some_content
from isotherm.testing.simulated import Simulation
from isotherm.topology import MoEShape, Topology
from isotherm.window import KINDS, HeatWindow

SHAPE = MoEShape(layers=2, experts=4, top_k=2)
STEPS = 6
HEARTBEAT = "heartbeat"


class Collected:
    """A collector, its heartbeat, and what it should have counted. Every step ends in a snapshot, and a
    window spans two or more. ``scale`` is what all ranks count together for one token of this one."""

    def __init__(
        self, simulation: Simulation, topology: Topology, *, rank: int = 0, scale: int = 1, **arguments: Any
    ) -> None:
        self.simulation = simulation
        self.windows: list[HeatWindow] = []
        self.plain_NKLE: list[Int64Array] = [np.zeros((len(KINDS), SHAPE.layers, SHAPE.experts), np.int64)]
        self._now_KLE = self.plain_NKLE[0].copy()
        self._scale = scale
        self._lent_S: torch.Tensor | None = None
        self.collector = HeatCollector(
            SHAPE,
            topology,
            None,
            rank=rank,
            window_steps=2,
            slices=2,
            backend=simulation.backend,
            **arguments,
        )
        simulation.name(self.collector.totals.rows_MW, "totals")
        self.collector.on_window(self.windows.append)
        self._heartbeat = Heartbeat(LoneLink(), [self.collector.gather], interval_seconds=1)

    def expect(self, kind: int, layer: int, expert: int, tokens: int) -> None:
        """This many tokens more, by the plain count."""
        self._now_KLE[kind, layer, expert] += tokens

    def lent(self, counts_S: torch.Tensor) -> torch.Tensor:
        """The counts in the one buffer that the engine has for them."""
        if self._lent_S is None:
            self._lent_S = torch.empty_like(counts_S, device=self.simulation.device)
            self.simulation.name(self._lent_S, "lent counts")
        return self._lent_S.copy_(counts_S, non_blocking=True)

    def handed_over(self, counts_S: torch.Tensor) -> torch.Tensor:
        """The counts in memory of their own."""
        return counts_S.to(self.simulation.device, non_blocking=True)

    def end_step(self) -> None:
        """Ends a step of one token, and lets the heartbeat come if the schedule likes."""
        self.collector.end_step(num_tokens=1)
        self.plain_NKLE.append(self._now_KLE.copy())
        assert self.simulation.host_waits == 0, "a call of the forward path made the host wait"
        if self.simulation.choose(2):
            self.beat()

    def beat(self) -> None:
        with self.simulation.host_thread(HEARTBEAT):
            self._heartbeat.beat()

    def finish(self) -> None:
        """Gathers the last step, closes, and compares every slice of every window with the plain count."""
        self.simulation.finish()
        self.beat()
        for _ in range(2):  # a buffer is free now, so this step's snapshot is taken and ends a window
            self.collector.end_step(num_tokens=0)
            self.plain_NKLE.append(self._now_KLE.copy())
            self.simulation.finish()
            self.beat()
        self.collector.close()
        self.simulation.join_thread(HEARTBEAT)
        borders = [0, *(window.end_step for window in self.windows)]
        assert [window.start_step for window in self.windows] == borders[:-1], "windows follow each other"
        assert borders[-1] + 1 >= len(self.plain_NKLE) - 1, f"counted to step {borders[-1]}"
        for window in self.windows:
            self._check(window)

    def _check(self, window: HeatWindow) -> None:
        for index, (first, last) in enumerate(zip(window.slice_steps, window.slice_steps[1:], strict=False)):
            wanted_KLE = (self.plain_NKLE[last] - self.plain_NKLE[first]) * self._scale
            found_KLE = window.heat_KSLE[:, index]
            assert np.array_equal(found_KLE, wanted_KLE), (
                f"steps {first} to {last}: {found_KLE.tolist()}, the plain count is {wanted_KLE.tolist()}"
            )


def heat_from_ids(simulation: Simulation) -> None:
    """Ids of two micro-batches on two streams of the engine, which orders them as it must."""
    traffic = np.random.default_rng(1)
    backend = simulation.backend
    with torch.inference_mode():
        run = Collected(simulation, Topology(ranks=1, slots_per_rank=4), micro_batches=2)
        for step in range(STEPS):
            begun = backend.main_stream().record_event()
            for micro_batch in range(2):
                with simulation.engine_stream("second") if micro_batch else nullcontext():
                    backend.main_stream().wait_event(begun)
                    _count_ids(run, traffic, (step + micro_batch) % SHAPE.layers, micro_batch)
                    done = backend.main_stream().record_event()
            backend.main_stream().wait_event(done)
            run.end_step()
        run.finish()


def heat_from_received(simulation: Simulation) -> None:
    """Received counts in every form, lent and handed over, while the slots change what they hold."""
    traffic = np.random.default_rng(2)
    with torch.inference_mode():
        run = Collected(simulation, Topology(ranks=1, slots_per_rank=6), source="received")
        content_LS = np.tile(np.arange(6) % SHAPE.experts, (SHAPE.layers, 1)).astype(np.int32)
        for step in range(STEPS):
            for layer in range(SHAPE.layers):
                for form in range(4):
                    _count_received(run, traffic, layer, content_LS[layer], form)
            run.end_step()
            if step % 2:
                content_LS = some_content(traffic, SHAPE.layers, SHAPE.experts, 6)
                run.collector.load_placement(Placement(content_LS, SHAPE.experts))
        run.finish()


def heat_gathered_on_the_device(simulation: Simulation) -> None:
    """As the attempt that was reverted meant it: gathered on the side stream. The other rank counts three
    times what this one does."""
    traffic = np.random.default_rng(3)
    group = simulation.collective_group(2, _thrice)
    with torch.inference_mode():
        run = Collected(
            simulation,
            Topology(ranks=2, slots_per_rank=4),
            rank=1,
            scale=4,
            source="received",
            device_group=group,
        )
        content_S = (np.arange(4) + 4) % SHAPE.experts
        for _ in range(STEPS):
            for layer in range(SHAPE.layers):
                for form in range(4):
                    _count_received(run, traffic, layer, content_S, form)
            run.end_step()
        run.finish()
    for window in run.windows:
        wanted_L = window.heat_LE.sum(1)
        loads_LG = window.load_LG
        assert np.array_equal(loads_LG, wanted_L[:, None] * [3, 1] // 4), f"loads {loads_LG.tolist()}"


def _count_ids(run: Collected, traffic: np.random.Generator, layer: int, micro_batch: int) -> None:
    """Three tokens and a row of padding; the first one is a decode token."""
    ids_TK = traffic.integers(-1, SHAPE.experts, (4, SHAPE.top_k))
    run.collector.count_ids(
        layer,
        torch.from_numpy(ids_TK).to(run.simulation.device, non_blocking=True),
        num_tokens=3,
        num_decode=1,
        micro_batch=micro_batch,
    )
    for token, choices in enumerate(ids_TK[:3]):
        for expert in choices[choices >= 0]:
            run.expect(int(token == 0), layer, expert, 1)


def _count_received(
    run: Collected, traffic: np.random.Generator, layer: int, content_S: Int64Array | Int32Array, form: int
) -> None:
    """Form 0 to 3: counts or running sums, handed over or lent. What is handed over is dropped at once, what
    is lent lies in a buffer of the engine's that the next layer uses again."""
    cumulative, borrowed = form % 2 == 1, form >= 2
    counts_S = traffic.integers(0, 9, len(content_S))
    take = run.lent if borrowed else run.handed_over
    on_device_S = take(torch.from_numpy(counts_S.cumsum() if cumulative else counts_S))
    run.collector.count(layer, on_device_S, cumulative=cumulative, borrowed=borrowed)
    for expert, tokens in zip(content_S, counts_S, strict=True):
        run.expect(0, layer, expert, tokens)


def _thrice(call: int, peer: int, mine: torch.Tensor) -> torch.Tensor:
    """The other rank's part: three times as many tokens, at the same step."""
    theirs = mine * 3
    is_sum = call % 2 == 0  # heat, tokens and step; then the loads are gathered
    if is_sum:
        theirs[-1] = mine[-1]
    return theirs
