"""What a stream, an event and a backend promise: one check for each promise.

Each check is a plain function of a backend that raises ``AssertionError`` when the promise is
broken. They speak of tensors and events alone, so they hold for worker threads and for devices.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

import torch

from isotherm.streams import Backend, Completion, forward_path, forward_waits
from isotherm.testing.streams_probes import (
    GATE_SECONDS,
    GLANCE_SECONDS,
    expect,
    expect_refused,
    failure_of,
    is_done_within,
    new_cell,
    require,
    side_streams,
    slow_work,
    submit_affine,
    submit_copy,
)


def work_runs_in_order(backend: Backend) -> None:
    cell = new_cell(backend)
    with side_streams(backend, "order") as (side,):
        expected = 0
        for step in range(20):
            submit_affine(side, cell, 3, step)
            expected = expected * 3 + step
        side.record_event().synchronize()
        expect(cell, expected, "twenty steps that do not commute, on one stream")


def main_stream_is_the_callers(backend: Backend) -> None:
    cell = new_cell(backend)
    submit_affine(backend.main_stream(), cell, 1, 3)
    cell.add_(1)
    submit_affine(backend.main_stream(), cell, 2, 0)
    expect(cell, 8, "work on main between two operations of the caller")


def submit_never_waits(backend: Backend) -> None:
    cell = new_cell(backend)
    with side_streams(backend, "busy") as (side,), slow_work(backend) as slow:
        side.submit(slow)
        submit_affine(side, cell, 1, 1)
        event = side.record_event()
        require(not is_done_within(event, GLANCE_SECONDS), "submit waited for the work in front of it")


def an_event_comes_after_its_work(backend: Backend) -> None:
    cell = new_cell(backend)
    with side_streams(backend, "event") as (side,), slow_work(backend) as slow:
        side.submit(slow)
        submit_affine(side, cell, 1, 7)
        event = side.record_event()
        require(not is_done_within(event, GLANCE_SECONDS), "an event was done before its work")
        slow.release()
        event.synchronize()
        require(event.query(), "an event that was waited for is not done")
        expect(cell, 7, "work before an event that is done")


def query_never_waits(backend: Backend) -> None:
    with side_streams(backend, "query") as (side,), slow_work(backend) as slow:
        side.submit(slow)
        event = side.record_event()
        started = time.perf_counter()
        answers = (event.query(), side.query())
        seconds = time.perf_counter() - started
        require(answers == (False, False), f"event and stream of slow work are done: {answers}")
        require(seconds < GATE_SECONDS / 2, f"query waited {seconds:.1f} s")


def an_event_stays_where_it_was_recorded(backend: Backend) -> None:
    with side_streams(backend, "again") as (side,), slow_work(backend) as slow:
        early = side.record_event()
        early.synchronize()
        side.submit(slow)
        late = side.record_event()
        require(early.query(), "an event was undone by recording another")
        require(not late.query(), "an event behind slow work shows an earlier point")
        slow.release()
        late.synchronize()
        require(early.query(), "an event was undone by work that came later")


def synchronize_finishes_everything(backend: Backend) -> None:
    cell = new_cell(backend)
    with side_streams(backend, "sync") as (side,):
        for _ in range(50):
            submit_affine(side, cell, 1, 1)
        side.synchronize()
        require(side.query(), "a stream that was waited for still has work")
        expect(cell, 50, "work before synchronize")


def a_stream_waits_for_a_pending_event(backend: Backend) -> None:
    source, target = new_cell(backend), new_cell(backend)
    with side_streams(backend, "first", "second") as (first, second), slow_work(backend) as slow:
        first.submit(slow)
        submit_affine(first, source, 1, 7)
        second.wait_event(first.record_event())
        submit_copy(second, source, target)
        copied = second.record_event()
        require(not is_done_within(copied, GLANCE_SECONDS), "a stream overtook the event it waits for")
        slow.release()
        copied.synchronize()
        expect(target, 7, "a copy behind an event of the stream that writes")


def a_stream_passes_an_event_already_done(backend: Backend) -> None:
    source, target = new_cell(backend), new_cell(backend)
    with side_streams(backend, "first", "second") as (first, second), slow_work(backend) as slow:
        submit_affine(first, source, 1, 7)
        written = first.record_event()
        written.synchronize()
        first.submit(slow)
        second.wait_event(written)
        submit_copy(second, source, target)
        second.synchronize()
        require(not first.query(), "a stream waited for what came after the event")
        expect(target, 7, "a copy behind an event that was done")


def streams_run_side_by_side(backend: Backend) -> None:
    cell = new_cell(backend)
    with side_streams(backend, "held", "free") as (held, free), slow_work(backend) as slow:
        held.submit(slow)
        submit_affine(free, cell, 1, 1)
        free.synchronize()
        require(not held.query(), "a stream waited for another without being told to")
        expect(cell, 1, "work beside a slow stream")


def streams_may_wait_for_each_other_in_turn(backend: Backend) -> None:
    cell = new_cell(backend)
    with side_streams(backend, "ping", "pong") as (ping, pong):
        expected = 0
        for turn in range(20):
            submit_affine(ping, cell, 2, turn)
            pong.wait_event(ping.record_event())
            submit_affine(pong, cell, 1, 1)
            ping.wait_event(pong.record_event())
            expected = expected * 2 + turn + 1
        ping.synchronize()
        expect(cell, expected, "twenty turns of two streams on one cell")


def a_side_stream_follows_main(backend: Backend) -> None:
    source, target = new_cell(backend), new_cell(backend)
    with side_streams(backend, "follow") as (side,), slow_work(backend) as slow:
        slow.release()
        main = backend.main_stream()
        main.submit(slow)
        submit_affine(main, source, 1, 7)
        side.wait_event(main.record_event())
        submit_copy(side, source, target)
        side.synchronize()
        expect(target, 7, "a copy behind an event of main")


def a_completion_owns_until_done(backend: Backend) -> None:
    source, target = new_cell(backend), new_cell(backend)
    source.fill_(7)
    backend.main_stream().synchronize()
    alive = weakref.ref(source)
    with side_streams(backend, "owner") as (side,), slow_work(backend) as slow:
        side.submit(slow)
        submit_copy(side, source, target)
        completion = Completion(side.record_event(), source)
        del source
        require(not completion.done(), "a completion is done before its event")
        require(alive() is not None, "a completion let go of what its work still reads")
        slow.release()
        completion.wait()
        require(completion.done(), "a completion that was waited for is not done")
        require(alive() is None, "a completion, or the stream, keeps what nobody reads any more")
        expect(target, 7, "a copy from memory that a completion owns")


def failed_work_is_told(backend: Backend) -> None:
    def fail() -> None:
        raise ArithmeticError("on purpose")

    cell = new_cell(backend)
    with side_streams(backend, "failing") as (side,):
        try:
            side.submit(fail)
        except ArithmeticError:
            return  # work runs at submission here, and so does its error
        submit_affine(side, cell, 1, 1)
        error = failure_of(side.record_event())
        require("failing" in str(error), f"the error does not name the stream: {error}")
        require(isinstance(error.__cause__, ArithmeticError), f"the error hides its cause: {error}")
        expect(cell, 0, "work behind work that raised")


def close_finishes_and_is_final(backend: Backend) -> None:
    cell = new_cell(backend)
    side = backend.side_stream("closing")
    for _ in range(50):
        submit_affine(side, cell, 1, 1)
    side.close()
    side.close()
    expect(cell, 50, "work before close")
    require(side.query(), "a closed stream has work left")
    side.record_event().synchronize()
    event = backend.main_stream().record_event()
    expect_refused(lambda: submit_affine(side, cell, 1, 1), "a closed stream took work")
    expect_refused(lambda: side.wait_event(event), "a closed stream took an event to wait for")
    backend.main_stream().close()
    submit_affine(backend.main_stream(), cell, 1, 1)
    expect(cell, 51, "work on main, which close must leave alone")


def pinned_memory_carries_bytes(backend: Backend) -> None:
    with torch.inference_mode():
        sent = backend.pinned_empty((16, 16), torch.uint8)
        received = backend.pinned_empty([16, 16], torch.uint8)
    require(not sent.is_inference(), "pinned memory can be written in inference mode only")
    sent.copy_(torch.arange(256).view(16, 16))
    received.zero_()
    on_device = torch.zeros(16, 16, dtype=torch.uint8, device=backend.device)
    backend.main_stream().synchronize()
    with side_streams(backend, "copies") as (side,):
        submit_copy(side, sent, on_device)
        submit_copy(side, on_device, received)
        side.record_event().synchronize()
    require(received.flatten().tolist() == list(range(256)), "bytes changed on the way and back")


def work_may_write_an_engines_tensors(backend: Backend) -> None:
    weights = torch.nn.Parameter(torch.zeros(1, device=backend.device))
    with torch.inference_mode():
        activations = new_cell(backend)
        with side_streams(backend, "modes") as (side,):
            submit_affine(side, activations, 1, 7)
            submit_copy(side, activations, weights)
            side.synchronize()
        expect(weights, 7, "tensors of inference mode and parameters, written on a side stream")


def waits_on_the_forward_path_are_counted(backend: Backend) -> None:
    with side_streams(backend, "counted") as (side,), slow_work(backend) as slow:
        before = forward_waits()
        side.submit(slow)
        event = side.record_event()

        def release_once_counted() -> None:
            pause = threading.Event()
            deadline = time.monotonic() + GATE_SECONDS / 2
            while forward_waits() == before and time.monotonic() < deadline:
                pause.wait(0.001)
            slow.release()

        releaser = threading.Thread(target=release_once_counted)
        releaser.start()
        with forward_path():
            event.synchronize()
        releaser.join()
        require(forward_waits() > before, "a wait on the forward path was not counted")


CHECKS: tuple[Callable[[Backend], None], ...] = (
    work_runs_in_order,
    main_stream_is_the_callers,
    submit_never_waits,
    an_event_comes_after_its_work,
    query_never_waits,
    an_event_stays_where_it_was_recorded,
    synchronize_finishes_everything,
    a_stream_waits_for_a_pending_event,
    a_stream_passes_an_event_already_done,
    streams_run_side_by_side,
    streams_may_wait_for_each_other_in_turn,
    a_side_stream_follows_main,
    a_completion_owns_until_done,
    failed_work_is_told,
    close_finishes_and_is_final,
    pinned_memory_carries_bytes,
    work_may_write_an_engines_tensors,
    waits_on_the_forward_path_are_counted,
)
"""Every check; its name says the promise."""
