"""The engine's thread: steps begin and end, tokens are mapped and counted, and nothing is waited for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

import torch

from isotherm.config import Mode
from isotherm.heat import HeatCollector
from isotherm.mover import heard
from isotherm.numbers import Number
from isotherm.router import Router, TableShelf
from isotherm.status import TablesInForce
from isotherm.streams import Backend, Event, Handoff, forward_path

StepWord: TypeAlias = Callable[[int], int]
"""This rank's word to lend in; out, what was read of an exchange: the same on every rank in the same step."""

_ENDED_AT_MOST = 64
"""Ended steps on their way to the heartbeat. A heartbeat that waits for a peer takes none, and later steps
tell what those would have told."""


class ForwardPath:
    """What the engine's thread does in each step. ``finished`` alone is the heartbeat's.

    What passes between the two is handed over: ended steps with an event behind them one way, tables on
    the shelf the other.

    Args:
        step_word: where all ranks take up tables in the same step: lends this rank's word to an exchange, and
            returns what was read of one.
        take_up: puts weights that came with tables into their slots, just before those are in force.
    """

    def __init__(
        self,
        collector: HeatCollector,
        router: Router,
        shelf: TableShelf,
        backend: Backend,
        mode: Mode,
        *,
        step_word: StepWord | None = None,
        take_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._collector = collector
        self._router = router
        self._shelf = shelf
        self._backend = backend
        self._step_word = step_word
        self._take_up = take_up
        self.mode = mode
        self.epoch = 0
        # The newest only: a server publishes for months.
        self.tables_in_force = deque([TablesInForce(0, 0)], maxlen=4096)
        self._num_tokens: Number = 0
        self._num_decode: Number = 0
        self._ended: Handoff[tuple[int, int, Event]] = backend.handoff()
        self._unfinished: deque[tuple[int, int, Event]] = deque()  # the heartbeat's own
        self._finished = (0, 0)

    def begin(self, num_tokens: Number, num_decode: Number) -> None:
        """Begins a step, and puts the newest tables in force: those that all ranks have, by the step word."""
        have_all = self._step_word is None or self._have_all(self._step_word)
        with forward_path():
            counted = self.mode != "off"
            self._num_tokens = num_tokens if counted else 0
            self._num_decode = num_decode if counted else 0
            if have_all:
                self._put_in_force()

    def catch_up(self) -> None:
        """Puts what was offered in force. Between steps, when all ranks do."""
        if self._shelf.newest_staged > self.epoch:
            self._put_in_force()
            self._tell()

    def wait(self) -> None:
        """Waits for all that the engine's stream was given. Between steps, away from the forward path."""
        self._backend.main_stream().synchronize()

    def _have_all(self, step_word: StepWord) -> bool:
        """Whether the newest tables lie ready on every rank, and all read that in this step."""
        offered = self._shelf.newest_staged
        return heard(self.epoch, offered, step_word(offered)) > self.epoch

    def _put_in_force(self) -> None:
        self._take_up()
        epoch = self._shelf.load_newest()
        if epoch is not None:
            self.epoch = epoch
            self.tables_in_force.append(TablesInForce(self._collector.step, epoch))

    def route(
        self,
        layer: int,
        ids_TK: torch.Tensor,
        num_tokens: Number | None,
        num_decode: Number | None,
        first_token: Number,
        micro_batch: int,
    ) -> torch.Tensor:
        """The slots of ``ids_TK``; None: the numbers of the step."""
        with forward_path():
            if self.mode == "off":
                num_tokens = 0
            return self._router.route(
                layer,
                ids_TK,
                step=self._collector.step,
                num_tokens=self._num_tokens if num_tokens is None else num_tokens,
                num_decode=self._num_decode if num_decode is None else num_decode,
                first_token=first_token,
                micro_batch=micro_batch,
            )

    def end(self) -> None:
        """Ends the step: takes a snapshot where one is due, and tells the heartbeat when this is done."""
        with forward_path():
            self._collector.advance(
                num_tokens=self._num_tokens,
                num_decode=self._num_decode,
                snapshots=self.mode not in ("off", "count"),
            )
            if len(self._ended) < _ENDED_AT_MOST:
                self._tell()

    def _tell(self) -> None:
        """Tells the heartbeat when all that was enqueued so far is done."""
        event = self._backend.main_stream().record_event()
        self._ended.put((self.epoch, self._collector.step, event))

    def finished(self) -> tuple[int, int]:
        """The newest tables with which a step is seen done on the engine's stream, and the steps done. On
        the heartbeat's thread; never waits."""
        self._shelf.retry()
        while (ended := self._ended.try_take()) is not None:
            self._unfinished.append(ended)
        while self._unfinished and self._unfinished[0][2].query():
            epoch, steps, _ = self._unfinished.popleft()
            self._finished = (epoch, steps)
        return self._finished


class StepScope:
    """What ``with balancer.step(...)`` enters: made once."""

    def __init__(self, begin: Callable[..., None], end: Callable[[], None]) -> None:
        self._begin = begin
        self._end = end
        self.tokens: tuple[Number, Number] = (0, 0)

    def __enter__(self) -> None:
        num_tokens, num_decode_tokens = self.tokens
        self._begin(num_tokens, num_decode_tokens=num_decode_tokens)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A step that raised ends too: the ranks' step numbers must not part.
        self._end()


def check_tokens(num_tokens: Number, num_decode_tokens: Number) -> None:
    """Raises ValueError where plain numbers do not fit together; tensors are not looked at, since that
    would be to wait for the device."""
    if isinstance(num_tokens, torch.Tensor) or isinstance(num_decode_tokens, torch.Tensor):
        return
    if not 0 <= num_decode_tokens <= num_tokens:
        raise ValueError(
            f"num_decode_tokens={num_decode_tokens} must lie between 0 and num_tokens={num_tokens}"
        )
