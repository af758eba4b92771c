"""The instrument against waiting: each way to wait is caught, and what does not wait is let pass."""

import concurrent.futures
import queue
import select
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest
import torch
import torch.distributed as dist

from isotherm.streams import backend_for, count_wait, forward_path
from isotherm.testing.wait_meter import no_waits


def on_forward_path(call):
    with forward_path():
        call()


def watch(call, before=int, **settings):
    """The meter after ``call`` was made on the forward path; it must fail if anything waited. ``before`` is
    called right before, off the forward path."""
    message = ""
    try:
        with no_waits(**settings) as meter:
            before()
            on_forward_path(call)
    except AssertionError as error:
        message = str(error)
    assert bool(meter.waits) == bool(message)
    assert message.count(" at ") == len(meter.waits)
    assert meter.calls == 1
    return meter


def waits_of(call, before=int, **settings):
    return [wait.what for wait in watch(call, before, **settings).waits]


def soon(call):
    """Calls ``call`` in a moment, on another thread: what waits for it has to end."""
    threading.Timer(0.05, call).start()


@contextmanager
def held(lock):
    """Another thread holds ``lock`` until the function that is yielded was called, and a moment longer."""
    taken, release = threading.Event(), threading.Event()

    def hold():
        with lock:
            taken.set()
            release.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    assert taken.wait(20)
    try:
        yield lambda: soon(release.set)
    finally:
        release.set()
        thread.join(20)


class Locked:
    def __init__(self, lock):
        self.lock = lock

    def enter(self):
        with self.lock:
            pass


GLOBAL_LOCK = threading.Lock()


def enter_global():
    with GLOBAL_LOCK:
        pass


def enter_two(first, second):
    with first, second.lock:
        pass


@pytest.mark.parametrize("make", [threading.Lock, threading.RLock])
def test_a_lock_that_another_thread_holds_is_a_wait_however_it_is_taken(make):
    lock = make()
    name = type(lock).__name__
    calls = {
        f"with {name}": Locked(lock).enter,
        f"{name}.acquire": lambda: lock.acquire() and lock.release(),
        f"{name}.__enter__": lambda: lock.__enter__() and lock.release(),
    }
    for what, call in calls.items():
        with held(lock) as let_go:
            assert waits_of(call, let_go) == [what]
        assert waits_of(call) == []  # free again


def test_locks_are_found_in_globals_locals_and_closures():
    lock = threading.Lock()

    def enter_closure():
        with lock:
            pass

    with held(lock) as let_go:
        assert waits_of(enter_closure, let_go) == ["with lock"]
    with held(lock) as let_go:
        assert waits_of(lambda: enter_two(threading.Lock(), Locked(lock)), let_go) == ["with lock"]
    with held(GLOBAL_LOCK) as let_go:
        assert waits_of(enter_global, let_go) == ["with lock"]
    with held(lock) as let_go:
        assert waits_of(threading.Condition(lock).__enter__, let_go) == ["lock.__enter__"]
    lock.release()


def test_asking_for_a_lock_without_waiting_for_it_is_no_wait():
    lock = threading.Lock()
    no = False

    def ask():
        assert not lock.acquire(False)
        assert not lock.acquire(blocking=False)
        assert not lock.acquire(no)
        assert not lock.acquire(timeout=0)
        assert not lock.acquire(True, 0)

    lock.acquire()
    assert waits_of(ask) == []
    assert waits_of(lambda: lock.acquire(True, 0.001)) == ["lock.acquire"]
    assert waits_of(lambda: lock.acquire(timeout=0.001)) == ["lock.acquire"]


def test_a_lock_of_ones_own_is_no_wait():
    lock = threading.RLock()
    with lock:
        assert waits_of(Locked(lock).enter) == []


def read_file():
    with open(__file__) as file:
        file.readline()


def talk_to_socket():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"x")
        theirs.recv(1)
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)


def ask_store():
    store = dist.HashStore()
    store.set("key", "value")
    assert store.get("key") == b"value"


def take_from_queue():
    with pytest.raises(queue.Empty):
        queue.Queue().get(timeout=0.001)


def take_from_simple_queue():
    with pytest.raises(queue.Empty):
        queue.SimpleQueue().get(timeout=0.001)


def run_program():
    subprocess.run([sys.executable, "-c", ""], check=True)


def an_ended_thread():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    return thread


def join_a_thread():
    is_joined = threading.Event()
    thread = threading.Thread(target=is_joined.wait)
    thread.start()
    thread.join(0.001)
    is_joined.set()


def wait_for_a_condition():
    condition = threading.Condition()
    with condition:
        condition.wait(0.001)


WAITS = {
    "time.sleep": (lambda: time.sleep(0), ["time.sleep"]),
    "select": (lambda: select.select([], [], [], 0), ["select.select"]),
    "poll": (lambda: select.poll().poll(0), ["poll.poll"]),
    "event": (lambda: threading.Event().wait(0.001), ["Event.wait"]),
    "condition": (wait_for_a_condition, ["Condition.wait"]),
    "semaphore": (lambda: threading.Semaphore(0).acquire(timeout=0.001), ["Semaphore.acquire"]),
    "queue": (take_from_queue, ["Queue.get"]),
    "simple queue": (
        take_from_simple_queue,
        ["SimpleQueue.get"],
    ),
    "print": (lambda: print("said"), ["print"]),
    "file": (read_file, ["open", "TextIOWrapper.readline"]),
    "socket": (talk_to_socket, ["socket.sendall", "socket.recv"]),
    "store": (ask_store, ["Store.set", "Store.get"]),
    "count_wait": (count_wait, ["count_wait"]),
    "item": (
        lambda: torch.ones(1).item(),
        ["aten._local_scalar_dense.default: the host reads what is in a tensor"],
    ),
    "bool": (
        lambda: bool(torch.ones(1)),
        ["aten._local_scalar_dense.default: the host reads what is in a tensor"],
    ),
    "nonzero": (
        lambda: torch.ones(1).nonzero(),
        ["aten.nonzero.default: the host reads what is in a tensor"],
    ),
    "tolist": (lambda: torch.ones(1).tolist(), ["Tensor.tolist"]),
    "cpu": (lambda: torch.ones(1).cpu(), ["Tensor.cpu"]),
}


@pytest.mark.parametrize("name", WAITS)
def test_each_way_to_wait_is_caught_and_named(name):
    call, expected = WAITS[name]
    assert waits_of(call) == expected


def test_threads_and_processes_that_are_waited_for_are_caught():
    found = waits_of(join_a_thread)
    assert "Thread.join" in found
    assert "subprocess" in waits_of(run_program)
    future = concurrent.futures.Future()

    def ask():
        with pytest.raises(TimeoutError):
            future.result(0.001)

    assert waits_of(ask) == ["Future.result"]


def test_what_is_there_already_is_no_wait():
    event, future, items = threading.Event(), concurrent.futures.Future(), queue.Queue()
    event.set()
    future.set_result(1)
    items.put(1)
    simple = queue.SimpleQueue()
    simple.put(1)
    thread = an_ended_thread()

    def take():
        assert event.wait()
        assert future.result() == 1
        assert items.get() == simple.get() == 1
        thread.join()
        with pytest.raises(queue.Empty):
            simple.get_nowait()
        with pytest.raises(queue.Empty):
            simple.get(False)
        with pytest.raises(queue.Empty):
            items.get_nowait()

    assert waits_of(take) == []


def quietly(call):
    """Where there is no device the call raises. It is seen before it does."""
    with suppress(RuntimeError):
        call()


def mask():
    values = torch.arange(4)
    values[values > 1]
    values[values > 1] = 0
    values[torch.tensor([0, 1])]  # by position: of known size


def test_masks_read_values_and_positions_do_not():
    assert waits_of(mask) == [
        "aten.index.Tensor: the host reads what is in a tensor",
        "aten.index_put_.default: the host reads what is in a tensor",
    ]


def test_reading_tensors_of_the_cpu_is_let_pass_where_asked():
    def read():
        mask()
        torch.ones(1).item()
        torch.ones(2).tolist()
        torch.ones(1).cpu()

    assert waits_of(read, strict=False) == []


def test_copies_between_host_and_device_that_block_are_caught(monkeypatch):
    """A meta tensor stands for one on a device."""
    device, host = torch.ones(2, device="meta"), torch.ones(2)

    def caught(call):
        return [what.partition(": ")[2] for what in waits_of(call, strict=False)]

    unpinned = "a copy from cpu to meta whose host memory is not pinned"
    assert caught(lambda: host.to("meta")) == ["a copy from cpu to meta that blocks"]
    assert caught(lambda: device.copy_(host)) == ["a copy from cpu to meta that blocks"]
    assert caught(lambda: device.copy_(host, non_blocking=True)) == [unpinned]
    assert caught(lambda: host.to("meta", non_blocking=True)) == [unpinned]
    with no_waits() as quiet:
        device.copy_(host)  # not on the forward path
    assert quiet.calls == 0
    for call in (device.cpu, device.tolist, lambda: device.to("cpu", non_blocking=False)):
        assert waits_of(lambda call=call: quietly(call), strict=False)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: True)
    assert caught(lambda: device.copy_(host, non_blocking=True)) == []
    assert caught(lambda: device.copy_(device)) == []
    assert caught(lambda: torch.ops.aten.lift_fresh(device)) == ["values of Python are copied to a device"]


def test_waiting_for_an_accelerator_is_caught():
    if not torch.accelerator.is_available():
        assert waits_of(lambda: quietly(torch.accelerator.synchronize)) == ["torch.accelerator.synchronize"]
    event = torch.Event.__new__(torch.Event)
    assert waits_of(lambda: quietly(event.synchronize)) == ["Event.synchronize"]


def test_collectives_are_caught(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        cell = torch.ones(1)

        def reduce_async():
            work = dist.all_reduce(cell, async_op=True)
            work.wait()

        group = dist.group.WORLD
        assert waits_of(reduce_async) == ["ProcessGroup.allreduce", "Work.wait"]
        assert waits_of(lambda: group.broadcast(cell, 0)) == ["ProcessGroup.broadcast"]
        assert waits_of(dist.barrier) == ["ProcessGroup.barrier", "Work.wait"]
        assert waits_of(lambda: torch.ops.c10d.barrier(cell, group.boxed(), [])) == ["c10d.barrier.default"]
        assert waits_of(lambda: (dist.get_rank(), group.size())) == []
    finally:
        dist.destroy_process_group()


def test_host_streams_are_seen_when_they_are_waited_for_and_not_otherwise():
    backend = backend_for("cpu")
    side, gate = backend.side_stream("side"), threading.Event()
    try:
        side.submit(lambda: gate.wait(20))

        def hand_over():
            side.submit(lambda: None)
            event = side.record_event()
            event.query()

        assert waits_of(hand_over) == []
        found = waits_of(side.synchronize, lambda: soon(gate.set))
        assert found[0] == "count_wait"
        assert "with lock" in found
    finally:
        gate.set()
        side.close()


def test_what_is_off_the_forward_path_is_let_pass():
    with no_waits() as meter:
        time.sleep(0)
        on_forward_path(int)
        torch.ones(1).item()
        with forward_path(), forward_path():
            pass
        time.sleep(0)
    assert meter.calls == 2
    assert meter.waits == []


def test_other_threads_are_let_pass():
    with no_waits() as meter:
        thread = threading.Thread(target=on_forward_path, args=(lambda: time.sleep(0),))
        thread.start()
        thread.join()
    assert meter.waits == []


def test_a_wait_is_named_by_file_and_line_of_the_callers_own_code():
    with pytest.raises(AssertionError, match="1 waits on the forward path"), no_waits() as meter:
        on_forward_path(sleep_here)
    (wait,) = meter.waits
    assert wait.where == f"{__file__}:{sleep_here.__code__.co_firstlineno + 1}"


def sleep_here():
    time.sleep(0)


def test_a_wait_inside_isotherm_is_named_by_its_own_line():
    backend = backend_for("cpu")
    side, gate = backend.side_stream("side"), threading.Event()
    try:
        side.submit(lambda: gate.wait(20))
        meter = watch(side.synchronize, lambda: soon(gate.set))
        assert meter.waits
        assert all("isotherm/streams/worker.py:" in wait.where for wait in meter.waits)
    finally:
        gate.set()
        side.close()


def test_the_threads_own_profiler_comes_back():
    def profiler(frame, event, arg):
        return None

    def tracer(frame, event, arg):
        return None

    before = sys.getprofile(), sys.gettrace()
    try:
        sys.settrace(tracer)
        sys.setprofile(profiler)
        with no_waits():
            pass
        found = sys.getprofile(), sys.gettrace()
    finally:
        sys.setprofile(before[0])
        sys.settrace(before[1])
    assert found == (profiler, tracer)


def test_an_error_inside_the_block_is_not_hidden():
    def fail():
        time.sleep(0)
        raise KeyError

    with pytest.raises(KeyError), no_waits():
        on_forward_path(fail)


ALONE = """
import ctypes, sys
import torch
from isotherm.streams import forward_path
from isotherm.testing.wait_meter import no_waits

library = ctypes.CDLL(None)

def busy():
    return sum(range(1000))

def hidden():
    library.usleep(2000)

call = hidden if sys.argv[1] == "hidden" else busy
call()
with no_waits() as meter:
    for _ in range(50):
        with forward_path():
            call()
print(meter.calls, meter.switches)
"""


@pytest.mark.parametrize("call", ["hidden", "busy"])
def test_the_second_meter_sees_what_waits_inside_a_library(call):
    if not sys.platform.startswith("linux"):
        pytest.skip("the system does not count by thread")
    done = subprocess.run(
        [sys.executable, "-c", ALONE, call], capture_output=True, text=True, timeout=60, check=True
    )
    calls, switches = map(int, done.stdout.split())
    assert calls == 50
    assert switches >= 50 if call == "hidden" else switches <= 2
