"""Routing on the simulated device, while the heartbeat changes its tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from isotherm.arrays import Int32Array
from isotherm.placement import Placement
from isotherm.router import Router, RoutingTables
from isotherm.router.staging import Staged
from isotherm.testing.programs.parts import some_content
from isotherm.testing.simulated import Simulation
from isotherm.topology import MoEShape

SHAPE = MoEShape(layers=2, experts=4, top_k=2)
SLOTS = 6
STEPS = 5
TOKENS, REAL, DECODE = 4, 3, 1
"""Rows of a batch; the first are real, and the first of those are decode tokens."""


@dataclass(frozen=True, eq=False)
class _Routed:
    """A batch, and the contents that were in force for it."""

    layer: int
    ids_TK: np.ndarray
    slots_TK: torch.Tensor
    content_LP: Int32Array


class _Routing:
    """A router whose tables the heartbeat changes, and the batches that it mapped."""

    def __init__(self, simulation: Simulation, seed: int) -> None:
        self.simulation = simulation
        self._traffic = np.random.default_rng(seed)
        device = simulation.device
        self._heat_MKLE = torch.zeros((1, 2, SHAPE.layers, SHAPE.experts), dtype=torch.int32, device=device)
        self._received_MLP = torch.zeros((1, SHAPE.layers, SLOTS), dtype=torch.int32, device=device)
        simulation.name(self._heat_MKLE, "heat")
        self._content_LP = self._some_content()
        self.router = Router(
            _tables_of(self._content_LP),
            rank=0,
            backend=simulation.backend,
            heat_MKLE=self._heat_MKLE,
            received_MLP=self._received_MLP,
        )
        self._waiting = simulation.backend.handoff(list[tuple[Staged, Int32Array]]())
        self._routed: list[_Routed] = []
        self._waits = simulation.host_waits

    def some_ids(self) -> np.ndarray:
        return self._traffic.integers(-1, SHAPE.experts, (TOKENS, SHAPE.top_k))

    def keep(self, layer: int, ids_TK: np.ndarray, slots_TK: torch.Tensor) -> None:
        """A batch to be looked at in the end."""
        self._routed.append(_Routed(layer, ids_TK, slots_TK, self._content_LP))

    def begin_step(self) -> None:
        """The engine's thread loads what the heartbeat staged."""
        while (fresh := self._waiting.try_take()) is not None:
            staged, self._content_LP = fresh
            self.router.load(staged)

    def beat(self) -> None:
        """The heartbeat stages tables, as often as the schedule likes."""
        with self.simulation.host_thread("heartbeat"):
            for _ in range(self.simulation.choose(3)):
                content_LP = self._some_content()
                if (staged := self.router.try_stage(_tables_of(content_LP))) is not None:
                    self._waiting.put((staged, content_LP))

    def finish(self) -> None:
        """Compares slots and counts with a plain look-up and a plain count."""
        assert self.simulation.host_waits == self._waits, "routing or loading made the host wait"
        heat_KLE, received_LP = self._heat_MKLE[0].cpu().numpy(), self._received_MLP[0].cpu().numpy()
        plain_KLE, plain_LP = np.zeros_like(heat_KLE), np.zeros_like(received_LP)
        for batch in self._routed:
            slots_TK = batch.slots_TK.cpu().numpy()
            held_TK = np.where(slots_TK < 0, -1, batch.content_LP[batch.layer][slots_TK])
            went = f"experts {batch.ids_TK.tolist()} went to slots {slots_TK.tolist()}"
            assert np.array_equal(held_TK, batch.ids_TK), went
            for token in range(REAL):
                for expert, slot in zip(batch.ids_TK[token], slots_TK[token], strict=True):
                    if expert >= 0:
                        plain_KLE[int(token < DECODE), batch.layer, expert] += 1
                        plain_LP[batch.layer, slot] += 1
        for found, plain in ((heat_KLE, plain_KLE), (received_LP, plain_LP)):
            assert np.array_equal(found, plain), (
                f"counted {found.tolist()}, the plain count is {plain.tolist()}"
            )
        self.simulation.join_thread("heartbeat")

    def _some_content(self) -> Int32Array:
        return some_content(self._traffic, SHAPE.layers, SHAPE.experts, SLOTS)


def tables_change_while_routing(simulation: Simulation) -> None:
    """Every token goes to a slot that held its expert when it was routed, and is counted there once."""
    with torch.inference_mode():
        run = _Routing(simulation, 4)
        for step in range(STEPS):
            run.begin_step()
            for layer in range(SHAPE.layers):
                ids_TK = run.some_ids()
                on_device = torch.from_numpy(ids_TK).to(simulation.device, non_blocking=True)
                slots_TK = run.router.route(layer, on_device, step=step, num_tokens=REAL, num_decode=DECODE)
                run.keep(layer, ids_TK, slots_TK)
            run.beat()
        run.finish()


def tables_change_under_a_captured_graph(simulation: Simulation) -> None:
    """The same where the engine captured its forward pass once and replays it: what changes from step to step
    is written to the addresses that the graph reads."""
    device = simulation.device
    with torch.inference_mode():
        run = _Routing(simulation, 6)
        state = torch.zeros(4, dtype=torch.int64, device=device)
        ids_LTK = torch.zeros((SHAPE.layers, TOKENS, SHAPE.top_k), dtype=torch.int64, device=device)
        with simulation.capture() as graph:
            slots_LTK = [
                run.router.route_captured(layer, ids_LTK[layer], state) for layer in range(SHAPE.layers)
            ]
        for step in range(STEPS):
            run.begin_step()
            state.copy_(torch.tensor([step, 0, REAL, DECODE]), non_blocking=True)
            fresh_LTK = np.stack([run.some_ids() for _ in range(SHAPE.layers)])
            ids_LTK.copy_(torch.from_numpy(fresh_LTK), non_blocking=True)
            graph.replay()
            for layer in range(SHAPE.layers):
                run.keep(layer, fresh_LTK[layer], slots_LTK[layer].clone())
            run.beat()
        run.finish()


def _tables_of(content_LP: Int32Array) -> RoutingTables:
    return RoutingTables.build(content_LP, Placement(content_LP, SHAPE.experts).even_shares(), SHAPE.experts)
