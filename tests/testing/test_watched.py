"""The detector around real worker threads: every rule both ways, whatever this run's timing was."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
import torch

from isotherm.heat import HeatCollector
from isotherm.streams import Stream, backend_for
from isotherm.testing.findings import Finding, Race, Undeclared, UnexplainedWrite
from isotherm.testing.programs.parts import LoneLink
from isotherm.testing.streams_contract import CHECKS
from isotherm.testing.watched import WatchedBackend, watch
from isotherm.topology import MoEShape, Topology


@pytest.fixture
def backend() -> WatchedBackend:
    return watch(backend_for("cpu"))


@pytest.fixture
def strict() -> WatchedBackend:
    return watch(backend_for("cpu"), canaries=True)


def kinds(backend: WatchedBackend) -> list[type[Finding]]:
    return [type(finding) for finding in backend.detector.findings]


def submit_add(stream: Stream, totals: torch.Tensor, counts: torch.Tensor) -> None:
    stream.submit(lambda: totals.add_(counts), reads=[counts], writes=[totals])


ABOUT_CONCURRENCY = ("streams_run_side_by_side", "a_stream_passes_an_event_already_done")
"""With canaries work runs one at a time, which is what these checks forbid."""


@pytest.mark.parametrize(
    ("check", "canaries"),
    [
        pytest.param(check, canaries, id=f"{check.__name__}{'-canaries' * canaries}")
        for check in CHECKS
        for canaries in (False, True)
        if not (canaries and check.__name__ in ABOUT_CONCURRENCY)
    ],
)
def test_the_contract_of_streams(check: Callable[..., None], canaries: bool) -> None:
    backend = watch(backend_for("cpu"), canaries=canaries)
    check(backend)
    backend.detector.check()


def test_only_the_host_is_watched() -> None:
    class Elsewhere:
        device = torch.device("meta")

    with pytest.raises(ValueError, match="choose backend_for"):
        watch(Elsewhere())  # type: ignore[arg-type]


def test_who_saw_it_done_orders_what_it_submits(backend: WatchedBackend) -> None:
    totals, counts = torch.zeros(4), torch.ones(4)
    backend.name(totals, "totals")
    first, second = backend.side_stream("first"), backend.side_stream("second")
    submit_add(first, totals, counts)
    first.synchronize()
    # The host saw the first one done, and so does what it submits: an edge of its own.
    worker = threading.Thread(target=submit_add, args=(second, totals, counts))
    worker.start()
    worker.join()
    for stream in (first, second):
        stream.close()
    assert totals.tolist() == [2] * 4
    assert kinds(backend) == []


@pytest.mark.parametrize("is_edge", [True, False])
def test_a_stream_that_overtakes_nobody_by_luck(backend: WatchedBackend, is_edge: bool) -> None:
    """The second stream runs long after the first, and nothing makes it."""
    totals, counts = torch.zeros(4), torch.ones(4)
    backend.name(totals, "totals")
    first, second = backend.side_stream("first"), backend.side_stream("second")
    submit_add(first, totals, counts)
    if is_edge:
        second.wait_event(first.record_event())
    submit_add(second, totals, counts)
    for stream in (first, second):
        stream.close()
    assert kinds(backend) == ([] if is_edge else [Race])
    if not is_edge:
        with pytest.raises(AssertionError, match="second must wait for an event recorded on first behind"):
            backend.detector.check()
        assert "'totals' float32 [4]" in str(backend.detector.findings[0])


@pytest.mark.parametrize("is_seen", [True, False])
def test_the_host_reads_what_a_stream_wrote(backend: WatchedBackend, is_seen: bool) -> None:
    totals, counts = torch.zeros(4), torch.ones(4)
    side = backend.side_stream("heat")
    submit_add(side, totals, counts)
    done = side.record_event()
    while not done.inner.query():
        pass  # done for certain, and the backend was not asked
    if is_seen:
        assert done.query()
    with backend.watching_torch():
        assert totals.sum().item() == 4
    assert kinds(backend) == ([] if is_seen else [Race])
    side.close()


@pytest.mark.parametrize("is_edge", [True, False])
def test_a_stream_reads_what_the_engine_made(backend: WatchedBackend, is_edge: bool) -> None:
    """The engine declares nothing: torch's own operations are its accesses."""
    totals = torch.zeros(4)
    side = backend.side_stream("heat")
    with backend.watching_torch():
        counts = torch.ones(4).mul_(2)
        submit_add(side, totals, counts)
        if is_edge:
            side.synchronize()
        counts.zero_()
    side.close()
    assert kinds(backend) == ([] if is_edge else [Race])


@pytest.mark.parametrize("is_handoff", [True, False])
def test_buffers_between_threads(backend: WatchedBackend, is_handoff: bool) -> None:
    buffer = torch.zeros(4)
    given = backend.handoff() if is_handoff else deque()
    ready = threading.Event()

    def write() -> None:
        backend.caller_stream().submit(lambda: buffer.fill_(1), writes=[buffer])
        if is_handoff:
            given.put(buffer)  # type: ignore[union-attr]
        ready.set()
        finish.wait(10)

    backend.main_stream().record_event()  # known before the other thread is
    finish = threading.Event()
    writer = threading.Thread(target=write)
    writer.start()
    ready.wait(10)
    if is_handoff:
        assert given.try_take() is buffer  # type: ignore[union-attr]
        assert given.try_take() is None  # type: ignore[union-attr]
    backend.main_stream().submit(lambda: buffer.sum(), reads=[buffer])
    finish.set()
    writer.join()
    assert kinds(backend) == ([] if is_handoff else [Race])
    backend.main_stream().submit(lambda: buffer.add_(1), writes=[buffer])
    assert len(kinds(backend)) == (not is_handoff), "what a thread did that has ended is past"


@pytest.mark.parametrize("declared", ["reads", "writes", "nothing"])
def test_torch_in_work_touches_what_is_declared(backend: WatchedBackend, declared: str) -> None:
    totals = torch.zeros(4)
    arguments = {"reads": {"reads": [totals]}, "writes": {"writes": [totals]}}.get(declared, {})
    side = backend.side_stream("heat")
    side.submit(lambda: totals.add_(1), **arguments)
    side.close()
    assert kinds(backend) == ([] if declared == "writes" else [Undeclared])


def test_work_may_make_memory_of_its_own(backend: WatchedBackend) -> None:
    totals, counts = torch.zeros(3, 4), np.ones(4, np.float32)
    side = backend.side_stream("heat")

    def work() -> None:
        made = torch.from_numpy(counts) * 2
        made.add_(torch.zeros(4).add_(1))
        totals[0].add_(made)
        totals.t().reshape(-1).add_(5)  # a copy: what is added is added to it alone
        totals.view(-1)[:1].add_(torch.arange(2).to(torch.float32)[1])

    side.submit(work, writes=[totals])
    side.close()
    backend.detector.check()
    assert totals[0].tolist() == [4, 3, 3, 3]


def test_a_reshape_that_copies_reads(backend: WatchedBackend) -> None:
    secret, side = torch.zeros(3, 4), backend.side_stream("heat")
    side.submit(lambda: secret.view(-1))
    side.synchronize()
    assert kinds(backend) == []
    side.submit(lambda: secret.t().reshape(-1))
    side.close()
    assert kinds(backend) == [Undeclared]


@pytest.mark.parametrize("is_declared", [True, False])
def test_a_write_through_numpy(strict: WatchedBackend, is_declared: bool) -> None:
    totals, other = torch.zeros(4), torch.zeros(2, 4)
    strict.name(totals, "totals")
    side = strict.side_stream("heat")
    array = totals.numpy()

    def work() -> None:
        array[1] = 7

    side.submit(work, reads=[other], writes=[totals[:2]] if is_declared else [other])
    side.close()
    assert kinds(strict) == ([] if is_declared else [UnexplainedWrite])
    if not is_declared:
        assert "'totals'" in str(strict.detector.findings[0])
        assert "work" in str(strict.detector.findings[0])


def test_a_write_beside_what_is_declared(strict: WatchedBackend) -> None:
    totals = torch.zeros(4)
    side, array = strict.side_stream("heat"), totals.numpy()
    side.submit(lambda: array.fill(1), writes=[totals[:2]])
    side.close()
    assert kinds(strict) == [UnexplainedWrite]


def test_memory_that_comes_again_at_the_same_address_is_other_memory(backend: WatchedBackend) -> None:
    """Two streams in turn on memory that is freed between: no edge is needed."""
    streams = [backend.side_stream(name) for name in ("first", "second")]
    for turn in range(50):
        fresh = torch.zeros(1000)
        streams[turn % 2].submit(lambda fresh=fresh: fresh.add_(1), writes=[fresh])
        del fresh
    for stream in streams:
        stream.close()
    backend.detector.check()


def test_events_of_elsewhere_are_refused(backend: WatchedBackend) -> None:
    with pytest.raises(TypeError, match="watch its backend too"):
        backend.side_stream("heat").wait_event(backend_for("cpu").main_stream().record_event())


@pytest.mark.parametrize("source", ["ids", "received"])
def test_our_own_collector_on_real_threads(source: str) -> None:
    """The engine's thread, the heartbeat's and the side stream's, each at its own pace."""
    backend, windows = watch(backend_for("cpu")), []
    shape, topology = MoEShape(layers=2, experts=4, top_k=2), Topology(ranks=1, slots_per_rank=4)
    collector = HeatCollector(
        shape,
        topology,
        LoneLink(),
        source=source,
        window_steps=2,
        backend=backend,
        heartbeat_seconds=0.001,
    )
    collector.on_window(windows.append)
    ids_TK = torch.arange(6).remainder(4).view(3, 2)
    for _ in range(40):
        for layer in range(shape.layers):
            if source == "ids":
                collector.count_ids(layer, ids_TK)
            else:
                collector.count(layer, torch.tensor([2, 2, 1, 1]))
        collector.end_step(num_tokens=3)
        collector._side.synchronize()
    deadline = time.monotonic() + 20
    while sum(window.steps for window in windows) < 40 and time.monotonic() < deadline:
        time.sleep(0.001)
        collector.end_step(num_tokens=0)  # the last snapshots may have been skipped
    collector.close()
    backend.detector.check()
    counted_LE = sum(window.heat_LE for window in windows)
    assert counted_LE.tolist() == [[80, 80, 40, 40]] * 2
