"""The contract of streams, on every backend that this machine has; and that it can be broken."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

import pytest

from isotherm.streams import Backend, Event
from isotherm.streams.host import HostBackend, HostStream
from isotherm.streams.worker import REACHED, HostEvent
from isotherm.testing import streams_contract
from isotherm.testing.streams_contract import CHECKS, present_backends, run_check, run_contract

BACKENDS = {str(backend.device): backend for backend in present_backends()}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("device", BACKENDS)
def test_backend_keeps_the_promise(check: Callable[[Backend], None], device: str) -> None:
    check(BACKENDS[device])


def test_whole_contract_passes_on_the_host() -> None:
    results = run_contract(HostBackend())
    assert [result.name for result in results] == [check.__name__ for check in CHECKS]
    assert [result for result in results if not result.passed] == []
    assert all(result.detail == "" and result.seconds >= 0 for result in results)


class _NeverWaits(HostStream):
    """Forgets the events it is to wait for."""

    def wait_event(self, event: Event) -> None:
        pass


class _DoneAtOnce(HostStream):
    """Its events do not follow its work."""

    def record_event(self) -> HostEvent:
        return REACHED


class _Blocking(HostStream):
    """Waits for all work at each submission."""

    def submit(self, work: Callable[[], None], **_: object) -> None:
        super().submit(work)
        self.synchronize()


class _Hoarding(HostStream):
    """Keeps all work it ever had."""

    __slots__ = ("_kept",)

    def submit(self, work: Callable[[], None], **_: object) -> None:
        self._kept = [*getattr(self, "_kept", []), work]
        super().submit(work)


class _Silent(HostStream):
    """Swallows what work raises."""

    def submit(self, work: Callable[[], None], **_: object) -> None:
        def swallow() -> None:
            with contextlib.suppress(Exception):
                work()

        super().submit(swallow)


class _NeverCloses(HostStream):
    """Takes work after the end."""

    def close(self) -> None:
        self.synchronize()


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (_NeverWaits, "a_stream_waits_for_a_pending_event"),
        (_DoneAtOnce, "an_event_comes_after_its_work"),
        (_Blocking, "submit_never_waits"),
        (_Hoarding, "a_completion_owns_until_done"),
        (_Silent, "failed_work_is_told"),
        (_NeverCloses, "close_finishes_and_is_final"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_contract_finds_a_broken_stream(
    broken: type[HostStream], check: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(HostBackend):
        def side_stream(self, name: str) -> HostStream:
            return broken(name)

    monkeypatch.setattr("isotherm.testing.streams_probes.GATE_SECONDS", 0.2)
    [promise] = [promise for promise in CHECKS if promise.__name__ == check]
    result = run_check(promise, Broken(), timeout_seconds=30)
    assert not result.passed
    assert result.detail


def test_a_check_that_hangs_or_breaks_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hangs(_: Backend) -> None:
        release.wait(30)

    def breaks(_: Backend) -> None:
        raise KeyError("gone")

    monkeypatch.setattr(streams_contract, "CHECKS", (hangs, breaks))
    hung, broken = run_contract(HostBackend(), timeout_seconds=0.05)
    release.set()
    assert (hung.name, hung.passed, hung.detail) == ("hangs", False, "not done after 0.05 s")
    assert (broken.passed, broken.detail) == (False, "raised KeyError: 'gone'")
