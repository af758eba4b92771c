"""Queues of deferred operations, events in them, and the loop in which a schedule lets them run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from isotherm.testing.clocks import Kind, Knowledge, Lane
from isotherm.testing.extents import Extent
from isotherm.testing.findings import DeviceFault, Operation, UnexplainedWrite
from isotherm.testing.memory import Allocation, Arena
from isotherm.testing.races import Detector
from isotherm.testing.schedules import Schedule
from isotherm.testing.timeline import site_of_caller


@dataclass(frozen=True, eq=False)
class Touch:
    """Bytes that an operation reads or writes."""

    allocation: Allocation
    extent: Extent
    writes: bool
    tensor: str


@dataclass(frozen=True, eq=False)
class Task:
    """An operation that waits for its turn. It holds pointers and no tensor of the program's."""

    label: str
    operation: Operation
    run: Callable[[], None]
    touches: Sequence[Touch]


class Onlooker(Protocol):
    """The host, as an event sees it."""

    def observe(self) -> None: ...

    def learn(self, known: Knowledge) -> None: ...

    def wait(self, event: Event, label: str) -> None: ...


@dataclass(eq=False)
class Event:
    """A point in a queue. Seeing it done is an edge."""

    host: Onlooker
    queue: Queue
    known: Knowledge
    is_done: bool = False

    def query(self) -> bool:
        """Whether the queue got here, after the schedule has let some of it run. Never waits."""
        self.host.observe()
        if self.is_done:
            self.host.learn(self.known)
        return self.is_done

    def synchronize(self) -> None:
        """Lets the schedule run until the queue gets here: a host wait, if there is anything to wait for."""
        if not self.query():
            self.host.wait(self, f"event of {self.queue.name}")


@dataclass(frozen=True, eq=False)
class Hold:
    """What comes behind in the queue runs after ``event``."""

    event: Event


@dataclass(eq=False)
class Queue:
    """One stream of the device."""

    name: str
    lane: Lane
    items: deque[Task | Event | Hold] = field(default_factory=deque)

    def settle(self) -> bool:
        """Passes the events at its head; whether any was passed."""
        passed = False
        while self.items:
            head = self.items[0]
            if isinstance(head, Event):
                head.is_done = True
            elif not (isinstance(head, Hold) and head.event.is_done):
                break
            self.items.popleft()
            passed = True
        return passed

    @property
    def is_ready(self) -> bool:
        return bool(self.items) and isinstance(self.items[0], Task)


class Runner:
    """Runs what is at the head of the queues, one operation at a time."""

    def __init__(self, schedule: Schedule, arena: Arena, detector: Detector) -> None:
        self._schedule = schedule
        self._arena = arena
        self._detector = detector
        self.queues: list[Queue] = []

    def add_queue(self, name: str, kind: Kind = Kind.STREAM) -> Queue:
        """A queue whose name no other has."""
        number = sum(queue.name.partition("#")[0] == name for queue in self.queues)
        unique = f"{name}#{number + 1}" if number else name
        queue = Queue(unique, Lane(unique, kind))
        self.queues.append(queue)
        return queue

    def run_some(self) -> None:
        """As many operations as the schedule likes."""
        while (ready := self._ready()) and self._step(ready, may_stop=True):
            pass

    def run_until(self, event: Event) -> None:
        """At least until ``event`` is done."""
        while (ready := self._ready()) and not event.is_done:
            needed = _needed_for(event)
            ready.remove(needed)
            self._step([needed, *ready], may_stop=False)
        assert event.is_done, f"nothing can run, and an event of {event.queue.name} is open"

    def run_all(self) -> None:
        """Everything."""
        while ready := self._ready():
            self._step(ready, may_stop=False)

    def run(self, task: Task) -> None:
        """Runs one operation now. What it raises is a finding: no caller is there any more."""
        try:
            with torch.inference_mode():
                task.run()
        except Exception as error:
            self._detector.report(DeviceFault(task.operation, repr(error)), ("fault", task.operation.site))
        self._arena.explain(touch.extent for touch in task.touches if touch.writes)
        self.audit(f"{task.operation}")

    def audit(self, during: str) -> None:
        """Finds memory that changed since the last look, and that nothing explains."""
        for allocation in self._arena.unexplained():
            tensor = allocation.describe(allocation.tensor)
            self._detector.report(UnexplainedWrite(tensor, during, site_of_caller()))

    def _step(self, ready: Sequence[Queue], *, may_stop: bool) -> bool:
        choice = self._schedule.choose_stream([queue.name for queue in ready], may_stop=may_stop)
        if choice is None:
            return False
        queue = ready[choice]
        task = queue.items.popleft()
        assert isinstance(task, Task), "a queue that is ready has an operation at its head"
        self._detector.timeline.note(queue.name, "runs", task.label, task.operation.site)
        self.run(task)
        return True

    def _ready(self) -> list[Queue]:
        while any(queue.settle() for queue in self.queues):
            pass  # one that passed may let others pass
        return [queue for queue in self.queues if queue.is_ready]


def _needed_for(event: Event) -> Queue:
    """A queue that has to run before ``event`` can be done, and can."""
    queue = event.queue
    while isinstance(head := queue.items[0], Hold):
        queue = head.event.queue
    return queue
