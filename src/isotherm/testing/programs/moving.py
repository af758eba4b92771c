"""Weights that move on the simulated device while the engine uses the slots that are live."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from isotherm.arrays import Int32Array
from isotherm.control import Heartbeat, Transfer
from isotherm.mover.carrier import Carrier
from isotherm.mover.device import DeviceTransport
from isotherm.mover.ledger import BUFFERS, Ledger, Phase, Rules
from isotherm.mover.mover import Mover
from isotherm.mover.schedule import Fill
from isotherm.mover.staging import Staging
from isotherm.mover.transport import HostTransport
from isotherm.mover.weights import ExpertWeights
from isotherm.placement import Placement
from isotherm.planner import PlanRequest
from isotherm.planner.order.rounds import order_rounds
from isotherm.streams import Event
from isotherm.testing.programs.parts import LoneLink, ScriptedLink
from isotherm.testing.simulated import Simulation
from isotherm.topology import Topology

LAYERS, EXPERTS, SLOTS, WIDTH = 2, 3, 5, 4
STEPS = 14


@dataclass(frozen=True, eq=False)
class _Tables:
    """What an epoch lets the engine use: the live slots, and what they hold."""

    epoch: int
    content_LP: Int32Array
    live_LP: np.ndarray


class _Heartbeat:
    """The mover's side of a balancer: knows which steps are done, and leaves tables for the engine, and the
    weights that are to be taken up with them in ``staging``, if there is one."""

    def __init__(
        self,
        simulation: Simulation,
        transport: HostTransport,
        bytes_per_expert: int,
        staging: Staging | None = None,
    ) -> None:
        self._staging = staging
        start = Placement(np.tile(np.arange(SLOTS) % EXPERTS, (LAYERS, 1)).astype(np.int32), EXPERTS)
        backend = simulation.backend
        self.tables = backend.handoff([_tables_of(Ledger.start(start, start.even_shares()))])
        self.ended = backend.handoff(list[tuple[int, int, Event]]())
        self._unfinished: deque[tuple[int, int, Event]] = deque()
        self._done = (0, 0)
        topology = Topology(ranks=1, slots_per_rank=SLOTS)
        self.mover = Mover(
            Ledger.start(start, start.even_shares()),
            Rules(topology, Placement.even_shares, by_word=staging is not None, limit=3),
            Carrier(transport, backend.caller_stream(), on_end=lambda: None),
            bytes_per_expert=bytes_per_expert,
            bytes_per_step=bytes_per_expert * 2,
            finished=self._finished,
            publish=self._publish,
        )
        self._rounds = Heartbeat(LoneLink(), [self.mover], interval_seconds=1)

    def beat(self, traffic: np.random.Generator) -> None:
        """A round; a settled placement is given another to become."""
        if self.mover.ledger.phase is Phase.SETTLED:
            rows = [
                np.concatenate([np.arange(EXPERTS), traffic.integers(0, EXPERTS, 2)]) for _ in range(LAYERS)
            ]
            goal = Placement(np.stack([traffic.permutation(row) for row in rows]).astype(np.int32), EXPERTS)
            request = PlanRequest(
                np.ones((LAYERS, EXPERTS)),
                Topology(ranks=1, slots_per_rank=SLOTS),
                self.mover.ledger.placement,
                slots_per_round=2,
            )
            self.mover.aim(goal, goal.even_shares(), order_rounds(request, goal))
        self._rounds.beat()

    def _publish(self, ledger: Ledger) -> None:
        if self._staging is not None:
            self._staging.leave(ledger)
        self.tables.put(_tables_of(ledger))

    def _finished(self) -> tuple[int, int]:
        while (ended := self.ended.try_take()) is not None:
            self._unfinished.append(ended)
        while self._unfinished and self._unfinished[0][2].query():
            self._done = self._unfinished.popleft()[:2]
        return self._done


def weights_move_while_used(simulation: Simulation) -> None:
    """Whatever slot the tables in force call live holds the weights that they say, bit for bit."""
    _serve(simulation, by_word=False)


def weights_are_taken_up_by_word(simulation: Simulation) -> None:
    """The same where weights wait beside slots that are all in use."""
    _serve(simulation, by_word=True)


def _serve(simulation: Simulation, *, by_word: bool) -> None:
    traffic, backend = np.random.default_rng(5), simulation.backend
    topology = Topology(ranks=1, slots_per_rank=SLOTS)
    with torch.inference_mode():
        weights_LPW = _weights(simulation, SLOTS)
        experts = _experts(weights_LPW, SLOTS)
        transport = HostTransport(experts, topology, backend)
        staging = Staging(experts, topology, 0, backend, buffers=BUFFERS) if by_word else None
        heartbeat = _Heartbeat(simulation, transport, experts.bytes_per_expert, staging)
        used: list[tuple[_Tables, torch.Tensor]] = []
        tables = None
        for step in range(1, STEPS + 1):
            while (newer := heartbeat.tables.try_take()) is not None:
                tables = newer
                if staging is not None:
                    staging.take_up()
            assert tables is not None, "the first tables are there from the start"
            used.append((tables, _compute(weights_LPW, tables)))
            heartbeat.ended.put((tables.epoch, step, backend.main_stream().record_event()))
            with simulation.host_thread("heartbeat"):
                for _ in range(simulation.choose(3)):
                    heartbeat.beat(traffic)
        for tables, computed in used:
            wanted = tables.content_LP[tables.live_LP]
            assert np.array_equal(computed.cpu().numpy(), wanted * WIDTH), f"slots of epoch {tables.epoch}"
        with simulation.host_thread("heartbeat"):
            transport.close()
        simulation.join_thread("heartbeat")


def weights_between_ranks(simulation: Simulation) -> None:
    """A dead slot receives what the other rank sends, and the other rank what a slot here holds."""
    backend, topology = simulation.backend, Topology(ranks=2, slots_per_rank=2)
    with torch.inference_mode():
        weights_LPW = _weights(simulation, 2)
        transport = HostTransport(_experts(weights_LPW, 2), topology, backend)
        link = ScriptedLink(lambda tag: np.full(WIDTH, 50 + tag, np.int64).tobytes())
        out, back = Fill(0, 2, 0, 0), Fill(1, 1, 0, 3)  # slot 0 goes to slot 2, slot 3 comes to slot 1
        done = backend.main_stream().record_event()
        with simulation.host_thread("heartbeat"):
            done.synchronize()
            transport.carry([out, back], link)
            transport.close()
        # The engine goes on with slots that are none of these meanwhile.
        other = weights_LPW[1][0] + 0
        simulation.join_thread("heartbeat")
        arrived = weights_LPW[1][1].cpu().tolist()
        assert link.received == [np.zeros(WIDTH, np.int64).tobytes()], "what was sent"
        assert arrived == [51] * WIDTH, f"what arrived: {arrived}"
        assert other.cpu().tolist() == [0] * WIDTH


class _ScriptedPeers:
    """The other rank's device: sends numbers, and keeps what it received."""

    def __init__(self) -> None:
        self.received: list[torch.Tensor] = []

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        self.received += [transfer.buffer.view(torch.int64) + 0 for transfer in sends]
        for transfer in receives:
            transfer.buffer.view(torch.int64).fill_(50 + transfer.tag)


def weights_between_devices(simulation: Simulation) -> None:
    """As `weights_between_ranks`, without the host; what comes has strides."""
    backend, topology = simulation.backend, Topology(ranks=2, slots_per_rank=2)
    with torch.inference_mode():
        rows, wide = _weights(simulation, 2)
        experts = ExpertWeights([{"w": rows[:, :2]}, {"w": wide[:, ::2]}], layers=LAYERS, slots_per_rank=2)
        peers = _ScriptedPeers()
        transport = DeviceTransport(experts, topology, backend, peers=peers)
        done = backend.main_stream().record_event()
        with simulation.host_thread("heartbeat"):
            done.synchronize()
            transport.carry([Fill(0, 2, 0, 1), Fill(1, 1, 0, 3)], LoneLink())
            transport.close()
        other = rows[0] + wide[0, 0]  # the engine goes on with slots that are none of these meanwhile
        simulation.join_thread("heartbeat")
        assert [each.cpu().tolist() for each in peers.received] == [[1, 1]], "what was sent"
        assert wide[1].cpu().tolist() == [51, 1] * (WIDTH // 2), "what arrived"
        assert other.cpu().tolist() == [0] * WIDTH


def _weights(simulation: Simulation, slots: int) -> list[torch.Tensor]:
    """For each layer [slots, width]: every word of slot ``p`` is the number of its expert."""
    rows = torch.arange(slots).remainder(EXPERTS).unsqueeze(1).expand(slots, WIDTH).contiguous()
    weights = [rows.to(simulation.device, non_blocking=True) for _ in range(LAYERS)]
    for layer, of_layer in enumerate(weights):
        simulation.name(of_layer, f"weights of layer {layer}")
    return weights


def _experts(weights_LPW: list[torch.Tensor], slots: int) -> ExpertWeights:
    return ExpertWeights([{"w": of_layer} for of_layer in weights_LPW], layers=LAYERS, slots_per_rank=slots)


def _compute(weights_LPW: list[torch.Tensor], tables: _Tables) -> torch.Tensor:
    """What the engine makes of the live slots: their sums, [live slots of all layers]."""
    sums = [weights_LPW[layer][slot].sum().unsqueeze(0) for layer, slot in np.argwhere(tables.live_LP)]
    return torch.cat(sums)


def _tables_of(ledger: Ledger) -> _Tables:
    return _Tables(ledger.epoch, ledger.content, (ledger.shares > 0) & (ledger.content >= 0))
