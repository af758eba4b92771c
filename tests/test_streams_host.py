"""Host streams beyond the contract: failures, lifetimes, the end, and the meter of waits."""

from __future__ import annotations

import functools
import gc
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Callable

import pytest
import torch

from isotherm.errors import StreamError
from isotherm.streams import (
    Completion,
    Event,
    Stream,
    backend_for,
    count_wait,
    forward_path,
    forward_waits,
)
from isotherm.streams.host import HostBackend, HostStream

SECONDS = 30.0
"""Longer than anything here takes: whoever waits this long has lost an event."""


@pytest.fixture
def side() -> Stream:
    return HostBackend().side_stream("side")


class Gate:
    """Holds a stream until it is opened; tells when the stream got to it."""

    def __init__(self, stream: Stream) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()
        stream.submit(self._hold)

    def _hold(self) -> None:
        self.reached.set()
        assert self._opened.wait(SECONDS), "nobody opened the gate"

    def open(self) -> None:
        self._opened.set()


def boom() -> None:
    raise ValueError("boom")


def add_one(tensor: torch.Tensor) -> Callable[[], None]:
    """Work that closes over the tensor."""

    def add() -> None:
        tensor.add_(1)

    return add


def fail_with(tensor: torch.Tensor) -> None:
    local = tensor.view(-1)
    try:
        boom()
    except ValueError as error:
        raise RuntimeError(local.shape) from KeyError(error)


class TestBackendFor:
    def test_cpu_is_the_host(self) -> None:
        assert isinstance(backend_for("cpu"), HostBackend)
        assert backend_for(torch.device("cpu")).device == torch.device("cpu")

    def test_mps_is_refused_with_a_remedy(self) -> None:
        with pytest.raises(ValueError, match="choose device='cpu'"):
            backend_for("mps")

    def test_a_device_that_is_not_here_is_refused_with_a_remedy(self) -> None:
        with pytest.raises(ValueError, match=r"device='meta' is not here.*'cpu'"):
            backend_for("meta")


class TestFailures:
    def test_events_name_stream_and_work_and_chain_the_cause(self, side: Stream) -> None:
        side.submit(boom)
        event = side.record_event()
        with pytest.raises(StreamError, match=r"'side'.*boom raised ValueError") as caught:
            event.synchronize()
        assert isinstance(caught.value.__cause__, ValueError)
        with pytest.raises(StreamError):
            event.query()
        with pytest.raises(StreamError):
            side.query()
        with pytest.raises(StreamError):
            side.synchronize()

    def test_events_before_the_failure_stay_done(self, side: Stream) -> None:
        before = side.record_event()
        side.submit(boom)
        with pytest.raises(StreamError):
            side.record_event().synchronize()
        before.synchronize()
        assert before.query()

    def test_later_work_is_dropped_and_close_is_quiet(self, side: Stream) -> None:
        ran: list[int] = []
        side.submit(boom)
        side.submit(lambda: ran.append(1))
        side.close()
        assert ran == []
        with pytest.raises(StreamError, match="boom"):
            side.record_event().synchronize()

    def test_what_is_printed_shows_where_the_work_raised(self, side: Stream) -> None:
        side.submit(functools.partial(fail_with, torch.zeros(1)))
        with pytest.raises(StreamError) as caught:
            side.record_event().synchronize()
        printed = "".join(traceback.format_exception(caught.value))
        assert "in fail_with" in printed
        assert "raise RuntimeError" in printed

    def test_each_who_asks_gets_an_error_of_its_own(self, side: Stream) -> None:
        side.submit(boom)
        event = side.record_event()
        errors = []
        for _ in range(2):
            with pytest.raises(StreamError) as caught:
                event.synchronize()
            errors.append(caught.value)
        assert errors[0] is not errors[1]
        assert errors[0].__cause__ is errors[1].__cause__

    def test_partials_are_named_by_their_function(self, side: Stream) -> None:
        side.submit(functools.partial(functools.partial(boom)))
        with pytest.raises(StreamError, match="more: boom raised"):
            side.record_event().synchronize()

    def test_even_exit_of_the_worker_comes_as_an_event(self, side: Stream) -> None:
        side.submit(sys.exit)
        with pytest.raises(StreamError, match="SystemExit"):
            side.record_event().synchronize()

    def test_a_stream_that_waits_for_a_failed_one_fails_too(self, side: Stream) -> None:
        other = HostBackend().side_stream("other")
        ran: list[int] = []
        side.submit(boom)
        other.wait_event(side.record_event())
        other.submit(lambda: ran.append(1))
        with pytest.raises(StreamError, match=r"'other'.*'side'.*boom") as caught:
            other.record_event().synchronize()
        assert isinstance(caught.value.__cause__, StreamError)
        assert isinstance(caught.value.__cause__.__cause__, ValueError)
        assert ran == []

    def test_main_raises_at_once(self) -> None:
        main = HostBackend().main_stream()
        with pytest.raises(ValueError, match="boom"):
            main.submit(boom)
        assert main.query()

    def test_main_that_waits_for_a_failed_stream_is_told(self, side: Stream) -> None:
        side.submit(boom)
        with pytest.raises(StreamError, match="boom"):
            HostBackend().main_stream().wait_event(side.record_event())

    def test_a_completion_says_so_each_time_and_lets_go(self, side: Stream) -> None:
        tensor = torch.zeros(1)
        alive = weakref.ref(tensor)
        side.submit(boom)
        side.record_event()
        completion = Completion(side.record_event(), tensor)
        del tensor
        with pytest.raises(StreamError):
            completion.wait()
        assert alive() is None
        with pytest.raises(StreamError):
            completion.done()

    def test_a_completion_asked_after_the_failure_lets_go_too(self, side: Stream) -> None:
        tensor = torch.zeros(1)
        alive = weakref.ref(tensor)
        side.submit(boom)
        event = side.record_event()
        completion = Completion(event, tensor)
        del tensor
        with pytest.raises(StreamError):
            event.synchronize()
        with pytest.raises(StreamError):
            completion.done()
        assert alive() is None


class TestLifetimes:
    def test_work_is_dropped_before_an_event_behind_it_is_done(self, side: Stream) -> None:
        tensor = torch.zeros(1)
        alive = weakref.ref(tensor)
        side.submit(add_one(tensor))
        del tensor
        side.record_event().synchronize()
        assert alive() is None

    def test_the_last_work_is_dropped_without_anything_behind_it(self, side: Stream) -> None:
        dropped = threading.Event()
        tensor = torch.zeros(1)
        weakref.finalize(tensor, dropped.set)
        side.submit(add_one(tensor))
        del tensor
        assert dropped.wait(SECONDS)

    def test_failed_and_skipped_work_is_dropped_too(self, side: Stream) -> None:
        def closure(tensor: torch.Tensor) -> Callable[[], None]:
            return lambda: fail_with(tensor)

        failed, skipped = torch.zeros(1), torch.zeros(1)
        alive = [weakref.ref(failed), weakref.ref(skipped)]
        side.submit(closure(failed))
        side.submit(add_one(skipped))
        del failed, skipped
        with pytest.raises(StreamError):
            side.record_event().synchronize()
        assert [ref() for ref in alive] == [None, None]

    def test_a_dropped_stream_finishes_and_ends(self) -> None:
        side = HostBackend().side_stream("dropped")
        gate = Gate(side)
        ran = threading.Event()
        side.submit(ran.set)
        event = side.record_event()
        assert gate.reached.wait(SECONDS)
        [thread] = [thread for thread in threading.enumerate() if "dropped" in thread.name]
        assert thread.name == "isotherm-dropped"
        assert thread.daemon
        stream = weakref.ref(side)
        del side
        gc.collect()
        assert stream() is None
        gate.open()
        event.synchronize()
        assert ran.is_set()
        thread.join(SECONDS)
        assert not thread.is_alive()

    def test_a_failed_stream_ends_when_dropped(self) -> None:
        side = HostBackend().side_stream("failed-and-dropped")
        [thread] = [t for t in threading.enumerate() if t.name == "isotherm-failed-and-dropped"]
        side.submit(boom)
        event = side.record_event()
        with pytest.raises(StreamError):
            event.synchronize()
        del side
        thread.join(SECONDS)
        assert not thread.is_alive()


class TestEvents:
    def test_many_threads_wait_for_one_event(self, side: Stream) -> None:
        gate = Gate(side)
        event = side.record_event()
        waiters = [threading.Thread(target=event.synchronize, daemon=True) for _ in range(8)]
        for waiter in waiters:
            waiter.start()
        gate.open()
        for waiter in waiters:
            waiter.join(SECONDS)
            assert not waiter.is_alive()

    def test_many_threads_submit_to_one_stream(self, side: Stream) -> None:
        total = torch.zeros(1, dtype=torch.int64)

        def add() -> None:
            total.add_(1)

        def submit_many() -> None:
            for _ in range(500):
                side.submit(add)

        threads = [threading.Thread(target=submit_many) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
        side.synchronize()
        assert total.item() == 2000
        assert side.query()

    def test_a_worker_runs_without_autograd(self, side: Stream) -> None:
        modes: list[bool] = []
        side.submit(lambda: modes.append(torch.is_inference_mode_enabled()))
        side.synchronize()
        assert modes == [True]


class TestClose:
    def test_close_finishes_what_was_submitted(self, side: Stream) -> None:
        gate = Gate(side)
        ran: list[int] = []
        side.submit(lambda: ran.append(1))
        closer = threading.Thread(target=side.close, daemon=True)
        closer.start()
        gate.open()
        closer.join(SECONDS)
        assert ran == [1]
        side.close()

    def test_a_closed_stream_says_what_to_do(self, side: Stream) -> None:
        side.close()
        with pytest.raises(RuntimeError, match=r"'side' is closed.*make another"):
            side.submit(boom)

    def test_work_may_close_its_own_stream(self, side: Stream) -> None:
        side.submit(side.close)
        side.record_event().synchronize()
        side.close()

    def test_nobody_loses_an_event_to_a_close_beside_it(self) -> None:
        for _ in range(50):
            side = HostBackend().side_stream("raced")
            closer = threading.Thread(target=side.close)
            closer.start()
            events = [side.record_event() for _ in range(20)]
            for event in events:
                event.synchronize()
            closer.join(SECONDS)
            assert not closer.is_alive()


EXITS = {
    "closed": "s.submit(f); s.close()",
    "idle": "s.submit(f); s.synchronize()",
    "full": "[s.submit(lambda: torch.ones(300, 300) @ torch.ones(300, 300)) for _ in range(999)]",
    "failed": "s.submit(lambda: 1 / 0); e = s.record_event()",
    "waiting": "t = b.side_stream('t'); s.submit(f); t.wait_event(s.record_event())",
    "waiting in a ring": (
        "t = b.side_stream('t'); l = threading.Lock(); l.acquire(); s.submit(l.acquire); "
        "t.wait_event(s.record_event()); s.wait_event(t.record_event()); l.release()"
    ),
    "closed by a later handler": "import atexit; s.submit(f); atexit.register(s.close)",
    "closed by an earlier handler": "s.submit(f); keep.append(s)",
    "held without end": "s.submit(threading.Event().wait)",
}


@pytest.mark.parametrize("how", EXITS)
def test_the_interpreter_ends_in_silence(how: str) -> None:
    program = f"""
import atexit, threading
import torch
keep = []
atexit.register(lambda: [stream.close() for stream in keep])
from isotherm.streams import worker
from isotherm.streams.host import HostBackend
worker.EXIT_SECONDS = 0.2
b = HostBackend()
s = b.side_stream("s")
f = lambda: torch.ones(100).sum()
{EXITS[how]}
"""
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


class TestForwardWaits:
    def test_a_wait_on_the_forward_path_is_counted(self, side: Stream) -> None:
        assert self.waits(side, lambda event: event.synchronize()) == 1
        assert self.waits(side, HostBackend().main_stream().wait_event) == 1
        assert self.waits(side, lambda _: side.synchronize()) == 1
        assert self.waits(side, lambda event: Completion(event).wait()) == 1
        assert self.waits(side, lambda _: side.close()) == 1

    @staticmethod
    def waits(side: Stream, wait: Callable[[Event], None]) -> int:
        """Counted waits of one that found the stream held; the count itself opens the gate."""
        gate = Gate(side)
        event = side.record_event()
        before = forward_waits()
        pause = threading.Event()

        def open_once_counted() -> None:
            for _ in range(10_000):
                if forward_waits() > before:
                    break
                pause.wait(0.001)
            gate.open()

        opener = threading.Thread(target=open_once_counted)
        opener.start()
        with forward_path():
            wait(event)
        opener.join(SECONDS)
        return forward_waits() - before

    def test_a_wait_elsewhere_is_not(self, side: Stream) -> None:
        gate = Gate(side)
        event = side.record_event()
        before = forward_waits()
        with forward_path():
            waiter = threading.Thread(target=event.synchronize)  # off the path: another thread
            waiter.start()
            gate.open()
            waiter.join(SECONDS)
        side.submit(boom)
        with pytest.raises(StreamError):
            side.record_event().synchronize()
        assert forward_waits() == before

    def test_what_never_waits_is_not(self, side: Stream) -> None:
        done = side.record_event()
        done.synchronize()
        before = forward_waits()
        main = HostBackend().main_stream()
        with forward_path():
            done.synchronize()
            side.synchronize()
            main.wait_event(done)
            main.submit(lambda: None)
            main.synchronize()
            main.record_event().synchronize()
            side.wait_event(done)
            side.submit(lambda: None)
            side.query()
            Completion(done).wait()
        assert forward_waits() == before

    def test_others_may_report_a_wait(self) -> None:
        before = forward_waits()
        count_wait()
        assert forward_waits() == before
        with forward_path(), forward_path():
            count_wait()
        with forward_path():
            count_wait()
        count_wait()
        assert forward_waits() == before + 2

    def test_the_path_ends_with_an_error_too(self) -> None:
        before = forward_waits()
        with pytest.raises(ValueError, match="boom"), forward_path():
            boom()
        count_wait()
        assert forward_waits() == before


def test_streams_import_without_torch() -> None:
    program = "import sys; import isotherm.streams; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.stdout.strip(), ended.stderr) == ("False", "")


def test_host_stream_is_what_side_stream_makes() -> None:
    assert isinstance(HostBackend().side_stream("x"), HostStream)
