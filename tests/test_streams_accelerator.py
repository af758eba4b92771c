"""The accelerator's streams against a torch that is played: what is asked of it, in which order.

`tests/test_streams_contract.py` holds the real one to the contract where a machine has one.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

import pytest
import torch

from isotherm.errors import StreamError
from isotherm.streams import Completion, backend_for, forward_path, forward_waits
from isotherm.streams.accelerator import AcceleratorBackend, AcceleratorEvent, AcceleratorStream
from isotherm.streams.host import HostBackend

KIND = "privateuseone"  # torch's name for devices that it does not know by name


class PlayedDevice:
    """What the played device was told, and whether it is done with it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.is_done = True
        self.is_broken = False
        self.current = 0

    def query(self) -> bool:
        if self.is_broken:
            raise RuntimeError("unspecified launch failure")
        return self.is_done

    def wait(self) -> None:
        self.told.append("host waits")
        if self.is_broken:
            raise RuntimeError("unspecified launch failure")
        self.is_done = True


DEVICE = PlayedDevice()


class PlayedEvent:
    def __init__(self, device: torch.device, *, enable_timing: bool) -> None:
        assert device == torch.device(KIND, 1)
        assert not enable_timing

    def query(self) -> bool:
        return DEVICE.query()

    def synchronize(self) -> None:
        DEVICE.wait()


class PlayedStream:
    """Refuses to be entered twice, as torch's own did until lately."""

    num_made = 0

    def __init__(
        self,
        stream_id: int | None = None,
        device_index: int = 1,
        device_type: int = 20,
        *,
        device: torch.device | None = None,
    ) -> None:
        if stream_id is None:
            assert device == torch.device(KIND, 1)
            PlayedStream.num_made += 1
            stream_id = PlayedStream.num_made
        self.stream_id, self.device_index, self.device_type = stream_id, device_index, device_type
        self.device = torch.device(KIND, 1)
        self._before: int | None = None

    def __enter__(self) -> PlayedStream:
        assert self._before is None, "entered twice"
        self._before, DEVICE.current = DEVICE.current, self.stream_id
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        assert self._before is not None
        DEVICE.current, self._before = self._before, None

    def record_event(self, event: PlayedEvent) -> None:
        assert isinstance(event, PlayedEvent)
        DEVICE.told.append(f"{self.stream_id} records")

    def wait_event(self, event: PlayedEvent) -> None:
        assert isinstance(event, PlayedEvent)
        DEVICE.told.append(f"{self.stream_id} waits")

    def query(self) -> bool:
        return DEVICE.query()

    def synchronize(self) -> None:
        DEVICE.wait()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> AcceleratorBackend:
    DEVICE.__init__()  # type: ignore[misc]
    monkeypatch.setattr(PlayedStream, "num_made", 0)
    monkeypatch.setattr(torch, "Stream", PlayedStream)
    monkeypatch.setattr(torch, "Event", PlayedEvent)
    played: dict[str, Callable[..., object]] = {
        "current_accelerator": lambda check_available=False: torch.device(KIND),
        "current_device_index": lambda: 1,
        "current_stream": lambda device: PlayedStream(0, device.index),
    }
    for name, function in played.items():
        monkeypatch.setattr(torch.accelerator, name, function)
    made = backend_for(KIND)
    assert isinstance(made, AcceleratorBackend)
    return made


def test_a_device_without_an_index_is_the_current_one(backend: AcceleratorBackend) -> None:
    assert backend.device == torch.device(KIND, 1)
    assert AcceleratorBackend(torch.device(KIND, 3)).device == torch.device(KIND, 3)


def test_another_kind_of_device_is_refused(backend: AcceleratorBackend) -> None:
    with pytest.raises(ValueError, match=f"'xpu' is not here, torch sees '{KIND}'"):
        backend_for("xpu")


def test_work_runs_at_once_on_its_stream(backend: AcceleratorBackend) -> None:
    seen: list[int] = []
    side = backend.side_stream("side")
    side.submit(lambda: seen.append(DEVICE.current))
    backend.main_stream().submit(lambda: seen.append(DEVICE.current))
    assert seen == [1, 0]
    assert DEVICE.current == 0


def test_work_may_submit_to_its_own_stream(backend: AcceleratorBackend) -> None:
    seen: list[int] = []
    side = backend.side_stream("side")
    other = backend.side_stream("other")

    def nested() -> None:
        other.submit(lambda: side.submit(lambda: seen.append(DEVICE.current)))
        seen.append(DEVICE.current)

    side.submit(nested)
    assert seen == [1, 1]
    assert DEVICE.current == 0


def test_what_work_raises_is_raised_and_the_stream_given_back(backend: AcceleratorBackend) -> None:
    def fail() -> None:
        raise ArithmeticError("on purpose")

    with pytest.raises(ArithmeticError):
        backend.side_stream("side").submit(fail)
    assert DEVICE.current == 0


def test_events_go_from_stream_to_stream_on_the_device(backend: AcceleratorBackend) -> None:
    first, second = backend.side_stream("first"), backend.side_stream("second")
    second.wait_event(first.record_event())
    assert DEVICE.told == ["1 records", "2 waits"]


def test_an_event_of_the_host_is_refused(backend: AcceleratorBackend) -> None:
    event = HostBackend().main_stream().record_event()
    with pytest.raises(TypeError, match="'side' of privateuseone:1 cannot wait for a HostEvent"):
        backend.side_stream("side").wait_event(event)


def test_a_host_stream_may_wait_for_the_device(backend: AcceleratorBackend) -> None:
    DEVICE.is_done = False
    host = HostBackend().side_stream("host")
    host.wait_event(backend.side_stream("side").record_event())
    host.synchronize()
    assert DEVICE.told == ["1 records", "host waits"]


@pytest.mark.parametrize("what", ["event", "stream"])
def test_only_real_waits_are_counted(backend: AcceleratorBackend, what: str) -> None:
    side = backend.side_stream("side")
    waited: AcceleratorEvent | AcceleratorStream = side.record_event() if what == "event" else side
    before = forward_waits()
    with forward_path():
        waited.synchronize()
        assert (forward_waits(), "host waits" in DEVICE.told) == (before, False)
        DEVICE.is_done = False
        assert not waited.query()
        waited.synchronize()
        assert (forward_waits(), "host waits" in DEVICE.told) == (before + 1, True)
    DEVICE.is_done = False
    waited.synchronize()
    assert forward_waits() == before + 1


def test_an_error_of_the_device_is_a_stream_error(backend: AcceleratorBackend) -> None:
    side = backend.side_stream("side")
    event = side.record_event()
    DEVICE.is_broken = True
    calls = (event.query, event.synchronize, side.query, side.synchronize, Completion(event).done)
    for call in calls:
        with pytest.raises(StreamError, match="launch failure") as caught:
            call()
        assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize("what", ["event", "stream"])
def test_an_error_that_comes_while_waiting_is_one_too(
    backend: AcceleratorBackend, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = backend.side_stream("side")
    event = side.record_event()
    DEVICE.is_broken = True
    monkeypatch.setattr(DEVICE, "query", lambda: False)
    with pytest.raises(StreamError, match="launch failure"):
        event.synchronize() if what == "event" else side.synchronize()


def test_close_waits_once_and_refuses_later_work(backend: AcceleratorBackend) -> None:
    side = backend.side_stream("side")
    DEVICE.is_done = False
    side.close()
    side.close()
    assert DEVICE.told == ["host waits"]
    with pytest.raises(RuntimeError, match="'side' is closed"):
        side.submit(lambda: None)
    with pytest.raises(RuntimeError, match="'side' is closed"):
        side.wait_event(side.record_event())


def test_main_is_never_closed(backend: AcceleratorBackend) -> None:
    ran: list[int] = []
    main = backend.main_stream()
    DEVICE.is_done = False
    main.close()
    main.submit(lambda: ran.append(1))
    assert (ran, DEVICE.told) == ([1], [])


def test_pinned_memory_is_asked_for(backend: AcceleratorBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def empty(shape: tuple[int, ...], *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        asked.append((shape, dtype, pin_memory, torch.is_inference_mode_enabled()))
        return torch.zeros(shape, dtype=dtype)

    monkeypatch.setattr(torch, "empty", empty)
    with torch.inference_mode():
        assert backend.pinned_empty([2, 3], torch.int32).shape == (2, 3)
    assert asked == [((2, 3), torch.int32, True, False)]
