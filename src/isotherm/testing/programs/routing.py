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


@dataclass(frozen=True, eq=False)
class _Routed:
    """A batch, and the contents that were in force for it."""

    layer: int
    ids_TK: np.ndarray
    slots_TK: torch.Tensor
    content_LP: Int32Array


def tables_change_while_routing(simulation: Simulation) -> None:
    """Every token goes to a slot that held its expert when it was routed, and is counted there once."""
    traffic, backend = np.random.default_rng(4), simulation.backend
    with torch.inference_mode():
        heat_MKLE = torch.zeros((1, 2, SHAPE.layers, SHAPE.experts), dtype=torch.int32, device=backend.device)
        received_MLP = torch.zeros((1, SHAPE.layers, SLOTS), dtype=torch.int32, device=backend.device)
        simulation.name(heat_MKLE, "heat")
        content_LP = some_content(traffic, SHAPE.layers, SHAPE.experts, SLOTS)
        router = Router(
            _tables(content_LP), rank=0, backend=backend, heat_MKLE=heat_MKLE, received_MLP=received_MLP
        )
        waits = simulation.host_waits
        waiting = backend.handoff(list[tuple[Staged, Int32Array]]())
        routed: list[_Routed] = []
        for step in range(STEPS):
            while (fresh := waiting.try_take()) is not None:
                staged, content_LP = fresh
                router.load(staged)
            routed += [
                _route(simulation, router, traffic, layer, step, content_LP) for layer in range(SHAPE.layers)
            ]
            with simulation.host_thread("heartbeat"):
                for _ in range(simulation.choose(3)):
                    new_LP = some_content(traffic, SHAPE.layers, SHAPE.experts, SLOTS)
                    if (ready := router.try_stage(_tables(new_LP))) is not None:
                        waiting.put((ready, new_LP))
        assert simulation.host_waits == waits, "routing or loading made the host wait"
        backend.main_stream().synchronize()
        _check(routed, heat_MKLE[0].cpu().numpy(), received_MLP[0].cpu().numpy())
        simulation.join_thread("heartbeat")


def _route(
    simulation: Simulation,
    router: Router,
    traffic: np.random.Generator,
    layer: int,
    step: int,
    content_LP: Int32Array,
) -> _Routed:
    ids_TK = traffic.integers(-1, SHAPE.experts, (4, SHAPE.top_k))
    on_device = torch.from_numpy(ids_TK).to(simulation.device, non_blocking=True)
    slots_TK = router.route(layer, on_device, step=step, num_tokens=3, num_decode=1)
    return _Routed(layer, ids_TK, slots_TK, content_LP)


def _check(routed: list[_Routed], heat_KLE: np.ndarray, received_LP: np.ndarray) -> None:
    wanted_KLE, wanted_LP = np.zeros_like(heat_KLE), np.zeros_like(received_LP)
    for batch in routed:
        slots_TK = batch.slots_TK.cpu().numpy()
        held_TK = np.where(slots_TK < 0, -1, batch.content_LP[batch.layer][slots_TK])
        assert np.array_equal(held_TK, batch.ids_TK), (
            f"experts {batch.ids_TK.tolist()} went to {slots_TK.tolist()}"
        )
        for token in range(3):
            for expert, slot in zip(batch.ids_TK[token], slots_TK[token], strict=True):
                if expert >= 0:
                    wanted_KLE[int(token == 0), batch.layer, expert] += 1
                    wanted_LP[batch.layer, slot] += 1
    assert np.array_equal(heat_KLE, wanted_KLE), f"heat {heat_KLE.tolist()}, plain {wanted_KLE.tolist()}"
    assert np.array_equal(received_LP, wanted_LP), (
        f"received {received_LP.tolist()}, plain {wanted_LP.tolist()}"
    )


def _tables(content_LP: Int32Array) -> RoutingTables:
    return RoutingTables.build(content_LP, Placement(content_LP, SHAPE.experts).even_shares(), SHAPE.experts)
