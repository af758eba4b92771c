"""The simulated device as the host sees it: what is enqueued, awaited, allocated, captured and audited."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from isotherm.streams import count_wait
from isotherm.testing.clocks import Kind, Knowledge, Lane
from isotherm.testing.extents import Extent
from isotherm.testing.findings import CaptureBroken, Operation, Undeclared
from isotherm.testing.memory import Allocation, Arena
from isotherm.testing.queues import Event, Hold, Queue, Runner, Task, Touch
from isotherm.testing.races import Detector
from isotherm.testing.schedules import MAIN, Schedule
from isotherm.testing.timeline import site_of_caller


@dataclass(eq=False)
class HostThread:
    """One thread of the program, and the stream that is current on it."""

    lane: Lane
    stream: Queue


@dataclass(eq=False)
class Scope:
    """Work under way: what it declared, and where it runs (no queue: on the calling thread)."""

    operation: Operation
    queue: Queue | None
    declared: Sequence[Touch]

    def allows(self, touch: Touch) -> bool:
        """Whether the work may touch this: it declared it, or made it itself."""
        return touch.allocation.scope is self or self.declares(touch)

    def declares(self, touch: Touch) -> bool:
        return Extent.union(
            declared.extent
            for declared in self.declared
            if declared.allocation is touch.allocation and (declared.writes or not touch.writes)
        ).covers(touch.extent)


class Device:
    """Streams, host threads and memory of one simulated machine, driven by one real thread."""

    def __init__(self, schedule: Schedule, arena_bytes: int, dispatch: Callable[..., Any]) -> None:
        self.dispatch = dispatch  # what its tensors call for each operation
        self.detector = Detector()
        self.arena = Arena(arena_bytes)
        self.host_waits = 0
        self.allocations = 0
        self._real_thread = threading.get_ident()
        self._captured: list[Task] = []  # of the graph that is being captured,
        self._capturing: HostThread | None = None  # by this thread
        self.scope: Scope | None = None
        self._runner = Runner(schedule, self.arena, self.detector)
        self.main = self.add_queue(MAIN)
        self._hosts = {MAIN: HostThread(Lane(MAIN, Kind.THREAD), self.main)}
        self.host = self._hosts[MAIN]

    # -- what the host does ---------------------------------------------------------------------------

    def add_queue(self, name: str, kind: Kind = Kind.STREAM) -> Queue:
        return self._runner.add_queue(name, kind)

    def learn(self, known: Knowledge) -> None:
        """The calling thread saw something done."""
        self.reap()
        self.host.lane.learn(known)

    @property
    def stream(self) -> Queue:
        """Where an operation of the calling thread goes now."""
        if self.scope is not None and self.scope.queue is not None:
            return self.scope.queue
        return self.host.stream

    @contextmanager
    def thread(self, name: str) -> Iterator[None]:
        """The block is done by the thread ``name``, which begins behind what its first caller did."""
        self.reap()
        before = self.host
        if name not in self._hosts:
            self._hosts[name] = HostThread(Lane(name, Kind.THREAD), self.main)
            self._hosts[name].lane.learn(before.lane.snapshot())
        self.host = self._hosts[name]
        try:
            yield
        finally:
            self.reap()
            self.host = before

    def join_thread(self, name: str) -> None:
        """The calling thread saw the thread ``name`` end."""
        self.learn(self._hosts[name].lane.snapshot())

    def enqueue(
        self, queue: Queue, label: str, run: Callable[[], None], touches: Sequence[Touch]
    ) -> Operation:
        """Puts an operation behind all others of ``queue`` and behind what the calling thread has seen."""
        self.reap()
        if self.is_capturing:
            return self._capture(queue, label, run, touches)
        queue.lane.learn(self.host.lane.snapshot())
        operation = self.detector.begin(queue.lane, label)
        self._record(operation, self._audited(operation, touches))
        queue.items.append(Task(label, operation, run, touches))
        return operation

    def replay(self, queue: Queue, tasks: Iterable[Task]) -> None:
        """Enqueues captured operations again, at the same addresses."""
        self.reap()
        for task in tasks:
            for touch in task.touches:
                if touch.allocation.is_freed and not touch.allocation.in_graph:
                    lost = touch.allocation.describe(touch.tensor)
                    self.forbid(f"{task.label!r} of a replayed graph uses {lost}, which was freed")
            self.enqueue(queue, task.label, task.run, task.touches)

    def record(self, queue: Queue) -> Event:
        self.reap()
        queue.lane.learn(self.host.lane.snapshot())
        event = Event(self, queue, queue.lane.snapshot())
        queue.items.append(event)
        self.detector.timeline.note(queue.name, "records", "event", site_of_caller())
        return event

    def hold(self, queue: Queue, event: Event) -> None:
        """What is enqueued from now on runs behind ``event``."""
        self.reap()
        if self.is_capturing and event.queue is not queue:
            self.forbid(f"{queue.name} waits for an event of {event.queue.name}")
        queue.lane.learn(self.host.lane.snapshot())
        queue.lane.learn(event.known)
        queue.items.append(Hold(event))
        self.detector.timeline.note(queue.name, "waits", f"event of {event.queue.name}", site_of_caller())

    def wait(self, event: Event, label: str) -> None:
        """The calling thread waits until ``event`` is done."""
        self.host_waits += 1
        count_wait()
        if self.is_capturing:
            self.forbid(f"the host waits for {label}")
        self.detector.timeline.note(self.host.lane.name, "WAITS", label, site_of_caller())
        self._runner.run_until(event)
        self.host.lane.learn(event.known)

    def work(
        self, queue: Queue | None, label: str, work: Callable[[], None], declared: Sequence[Touch]
    ) -> None:
        """Calls ``work`` with ``queue`` current, or as the calling thread's own, and audits it."""
        self.observe() if queue is None else self.reap()
        if self.is_capturing and queue is not None and queue is not self.host.stream:
            self.forbid(f"work for the side stream {queue.name}")
        lane = self.host.lane if queue is None else queue.lane
        lane.learn(self.host.lane.snapshot())
        operation = self.detector.begin(lane, label)
        self._runner.audit(f"what {self.host.lane} did before {label!r}")
        if not self.is_capturing or queue is None:
            self._record(operation, declared)
        outer, self.scope = self.scope, Scope(operation, queue, declared)
        try:
            work()
        finally:
            self._explain_own()
            self.scope = outer
            self._runner.audit(f"the work {label!r} while it was enqueued on {lane}")

    def do(self, label: str, run: Callable[[], None], touches: Sequence[Touch]) -> None:
        """The calling thread itself touches pinned memory, now."""
        self.observe()
        operation = self.detector.begin(self.host.lane, label, verb="does")
        self._record(operation, self._audited(operation, touches))
        run()
        self.arena.explain(touch.extent for touch in touches if touch.writes)

    def allocate(self, nbytes: int, tensor: str, *, is_host: bool) -> Allocation:
        self.reap()
        self.allocations += 1
        home = None if is_host else self.stream.name
        allocation = self.arena.allocate(nbytes, home, site_of_caller(), tensor)
        allocation.scope = self.scope
        allocation.in_graph = self.is_capturing and not is_host
        return allocation

    @property
    def is_capturing(self) -> bool:
        """Whether what the calling thread enqueues is recorded. Other threads go on as ever."""
        return self._capturing is self.host

    @contextmanager
    def capture(self) -> Iterator[list[Task]]:
        """What the calling thread enqueues in the block is put into the list, and does not run."""
        self.reap()
        self._capturing, self._captured = self.host, []
        try:
            yield self._captured
        finally:
            self.reap()
            self._capturing = None

    def forbid(self, what: str) -> None:
        site = site_of_caller()
        self.detector.report(CaptureBroken(what, site), ("capture", what, site))

    # -- what happens meanwhile -----------------------------------------------------------------------

    def observe(self) -> None:
        """The host looks at the device: the schedule lets it have run as far as it likes."""
        self.reap()
        self._explain_own()
        self._runner.audit(f"what {self.host.lane} did before it looked")
        self._runner.run_some()

    def finish(self) -> None:
        """Everything enqueued runs, in an order of the schedule's."""
        self.reap()
        self._runner.audit(f"what {self.host.lane} did at the end")
        self._runner.run_all()

    def reap(self) -> None:
        """Deals with memory that was freed since the last call: it is somebody else's at once.

        Raises:
            RuntimeError: called from a second real thread.
        """
        if threading.get_ident() != self._real_thread:
            raise RuntimeError(
                "a simulation is driven by one real thread: make rounds by hand, within "
                "`simulation.host_thread(name)`, instead of starting threads"
            )
        while self.arena.freed:
            allocation = self.arena.freed.popleft()
            allocation.is_freed = True
            if not allocation.in_graph:
                self._free(allocation)

    def _explain_own(self) -> None:
        """What work of the calling thread declares as written, it may have written by now."""
        if self.scope is not None and self.scope.queue is None:
            self.arena.explain(touch.extent for touch in self.scope.declared if touch.writes)

    def _free(self, allocation: Allocation) -> None:
        arena, host = self.arena, self.host.lane
        queue = next((queue for queue in self._runner.queues if queue.name == allocation.home), None)
        lane = host if queue is None else queue.lane
        lane.learn(host.snapshot())
        label = f"next user of {allocation.describe(allocation.tensor)}"
        poison = Operation(label, site_of_caller(), lane.stamp())  # the allocator's, not the program's
        self.detector.timeline.note(lane.name, "enqueued", label)
        self.detector.release(
            poison, allocation, allocation.tensor, allocated=allocation.site, home=str(lane)
        )
        whole = Touch(
            allocation, Extent.of(allocation.start, allocation.start + allocation.nbytes), True, "poison"
        )
        task = Task(poison.label, poison, lambda: arena.poison(allocation), [whole])
        if queue is None:
            self._runner.run(task)
        else:
            queue.items.append(task)
        arena.give_back(allocation)

    def _capture(
        self, queue: Queue, label: str, run: Callable[[], None], touches: Sequence[Touch]
    ) -> Operation:
        operation = Operation(label, site_of_caller(), queue.lane.stamp())
        self._audited(operation, touches)
        self._captured.append(Task(label, operation, run, touches))
        return operation

    def _audited(self, operation: Operation, touches: Sequence[Touch]) -> list[Touch]:
        """What is left to record: all but what the work under way declared for its own lane, since that was
        recorded for the work as a whole. What it did not declare is a finding."""
        scope = self.scope
        if scope is None:
            return list(touches)
        for touch in touches:
            if not scope.allows(touch):
                tensor, work = touch.allocation.describe(touch.tensor), scope.operation
                finding = Undeclared(work, tensor, repr(operation.label), touch.writes, operation.site)
                self.detector.report(finding, ("undeclared", operation.site, tensor, touch.writes))
        is_its_lane = operation.stamp.lane is scope.operation.stamp.lane
        return [touch for touch in touches if not (is_its_lane and scope.declares(touch))]

    def _record(self, operation: Operation, touches: Sequence[Touch]) -> None:
        for touch in touches:
            self.detector.touch(
                operation, touch.allocation, touch.extent, writes=touch.writes, tensor=touch.tensor
            )
