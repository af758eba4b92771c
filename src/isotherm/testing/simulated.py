"""A simulated device: streams and events of `isotherm.streams`, whose order a schedule decides.

    with Simulation(Seeded(17)) as simulation:
        program(simulation)
    simulation.check()

Inside, tensors made on ``simulation.device`` lie in simulated memory, and every operation on them is
enqueued and runs when the schedule says. Code that takes an `isotherm.streams.Backend` takes
``simulation.backend``. One real thread plays every thread of the program. Of what the program does to pinned
memory by itself, ``numpy()`` counts as a read at that moment; a write must be declared, by work of
``backend.caller_stream()``. An array that is kept and read later is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

import torch

from isotherm.testing.collectives import CollectiveGroup, Peers
from isotherm.testing.device import Device
from isotherm.testing.findings import Finding
from isotherm.testing.launch import FactoryMode, launch_operation
from isotherm.testing.queues import Task
from isotherm.testing.schedules import Schedule
from isotherm.testing.simulated_streams import SimulatedBackend
from isotherm.testing.tensors import DEVICE, known


class Simulation:
    """One run of a program on a simulated device.

    Leaving it lets everything run to its end. What was wrong is in ``findings``; ``check`` raises
    ``AssertionError`` with all of it.

    Args:
        schedule: decides which ready stream goes next, and how far the host runs ahead.
        arena_bytes: the size of the memory.
    """

    device = DEVICE

    def __init__(self, schedule: Schedule, *, arena_bytes: int = 1 << 20) -> None:
        self.schedule = schedule
        self._device = Device(schedule, arena_bytes, launch_operation)
        self.detector = self._device.detector
        self.backend = SimulatedBackend(self._device)
        self._mode: AbstractContextManager[object] = FactoryMode(self._device)
        self._kept: list[torch.Tensor] = []
        self._engine_streams = {self._device.main.name: self._device.main}

    def __enter__(self) -> Simulation:
        self._mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._mode.__exit__(kind, error, trace)
        if error is None:
            self._device.finish()

    @property
    def findings(self) -> list[Finding]:
        return self.detector.findings

    @property
    def host_waits(self) -> int:
        """How often the host waited for the device."""
        return self._device.host_waits

    @property
    def allocations(self) -> int:
        """How often memory was asked for, of the device or pinned."""
        return self._device.allocations

    def check(self) -> None:
        """Raises ``AssertionError`` with every finding and the timeline."""
        self.detector.check()

    def finish(self) -> None:
        """Lets everything enqueued so far run. No edge: the host has not seen it."""
        self._device.finish()

    def choose(self, number: int) -> int:
        """One of ``number`` ways to go on, by the schedule."""
        return self.schedule.choose(number)

    def name(self, tensor: torch.Tensor, name: str) -> None:
        """What findings call the memory of ``tensor``."""
        known(tensor).lease.allocation.name = name

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Keeps the tensor for as long as the simulation: what an engine holds for its whole life."""
        self._kept.append(tensor)
        return tensor

    def value(self, tensor: torch.Tensor) -> torch.Tensor:
        """The bytes as they are now, as a plain tensor: for the oracle of a test, not for the program, since
        nothing orders it."""
        return known(tensor).raw.clone()

    def host_thread(self, name: str) -> AbstractContextManager[None]:
        """The block is done by the program's thread ``name``. It begins behind what the thread that first
        enters it has done; from then on only events and handoffs order the two."""
        return self._device.thread(name)

    def join_thread(self, name: str) -> None:
        """The calling thread saw the thread ``name`` end."""
        self._device.join_thread(name)

    @contextmanager
    def engine_stream(self, name: str) -> Iterator[None]:
        """The block has the engine's stream ``name`` current: a second micro-batch."""
        host = self._device.host
        before = host.stream
        if name not in self._engine_streams:
            self._engine_streams[name] = self._device.add_queue(name)
        host.stream = self._engine_streams[name]
        try:
            yield
        finally:
            host.stream = before

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        """What the engine enqueues in the block is recorded and does not run."""
        with self._device.capture() as tasks:
            yield Graph(self._device, tasks)

    def collective_group(self, size: int, peers: Peers) -> CollectiveGroup:
        """A group of this rank and ``size - 1`` others, whose part ``peers`` gives."""
        return CollectiveGroup(self._device, size, peers)


class Graph:
    """Captured operations, which hold the addresses that they were captured with."""

    def __init__(self, device: Device, tasks: Sequence[Task]) -> None:
        self._device = device
        self._tasks = tasks

    def replay(self) -> None:
        """Enqueues them again on the engine's current stream."""
        self._device.replay(self._device.stream, self._tasks)
