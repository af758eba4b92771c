"""Heat counted beside vLLM: what its routers choose, step by step."""

from __future__ import annotations

import logging
from typing import Any

import torch

from isotherm.engines.vllm.routers import Routers, See, own_rows
from isotherm.heat import HeatCollector

logger = logging.getLogger("isotherm")


def tokens_of(scheduled: Any) -> tuple[int, int]:
    """How many tokens vLLM's scheduler has scheduled, and how many of them are of requests that have answered
    something already: decode tokens. vLLM's model runner puts these first in the batch."""
    tokens, cached = scheduled.num_scheduled_tokens, scheduled.scheduled_cached_reqs
    outputs = dict(zip(cached.req_ids, cached.num_output_tokens, strict=True))
    decode = sum(count for request, count in tokens.items() if outputs.get(request))
    return scheduled.total_num_scheduled_tokens, decode


class HeatObserver:
    """Counts the experts of this rank's real tokens: between `begin` and `end` of a step, and never else, so
    that profiling, warm-up, graph capture and dummy steps count nothing.

    On an accelerator, and in what `torch.compile` compiles, counting is one operator that reads the step's
    numbers from a tensor, so that captured graphs count at each replay. Nothing here waits, and what goes
    wrong is told once and ends the observation, not the engine.

    Args:
        collector: counts and gathers; its ranks are all of vLLM's.
        routers: of the model; each is shown from here on.
        window_steps: those of the collector.
        counts: whether this rank's tokens are its own: one of those that compute the same tokens.
        dp_rank: its data-parallel rank; None: there is one.
    """

    def __init__(
        self,
        collector: HeatCollector,
        routers: Routers,
        *,
        window_steps: int,
        counts: bool = True,
        dp_rank: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._collector, self._counts, self._dp_rank = collector, counts, dp_rank
        self._window_steps = window_steps
        self._state = torch.zeros(4, dtype=torch.int64, device=device)
        self._state_tokens, self._state_decode = self._state[2:3], self._state[3:4]
        self._on_host = self._state.is_cpu
        self._num_tokens = self._num_decode = 0
        self._failed = False
        routers.show([self._see_of(position) for position in range(routers.shape.layers)])

    def begin(self, scheduled: Any) -> bool:
        """Whether a step follows: what vLLM's scheduler gave this data-parallel rank has a token. Then `end`
        ends it."""
        if self._failed:
            return False
        try:
            num_tokens, num_decode = tokens_of(scheduled)
            if self._counts:
                self._set(num_tokens, num_decode)
        except Exception as error:
            self._give_up(error)
            return False
        return num_tokens > 0

    def end(self) -> None:
        """Ends a step, or a dummy one. Every rank ends the same steps."""
        if self._failed:
            return
        try:
            self._collector.end_step(num_tokens=self._num_tokens, num_decode=self._num_decode)
            if self._counts:
                self._set(0, 0)
        except Exception as error:
            self._give_up(error)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Ends the observation on every rank. The last window is filled up with empty steps, so that no token
        is lost. Waits for the other ranks, at most ``timeout_seconds``."""
        try:
            for _ in range(-self._collector.step % self._window_steps):
                self._collector.end_step(num_tokens=0)
            self._collector.close(timeout_seconds)
        except Exception as error:
            self._give_up(error)
        self._failed = True

    def _set(self, num_tokens: int, num_decode: int) -> None:
        self._num_tokens, self._num_decode = num_tokens, num_decode
        # Numbers travel as arguments of a kernel, in the order of the engine's stream: no copy, no wait.
        self._state_tokens.fill_(num_tokens)
        self._state_decode.fill_(num_decode)

    def _see_of(self, position: int) -> See:
        def see(ids_TK: torch.Tensor) -> None:
            if torch.compiler.is_compiling():
                self._collector.count_ids_captured(position, ids_TK, self._state)
            else:
                self._see(position, ids_TK)

        return see

    def _see(self, position: int, ids_TK: torch.Tensor) -> None:
        if self._failed:
            return
        try:
            rows_TK = self._own(ids_TK)
            if self._on_host:
                numbers = {"num_tokens": self._num_tokens, "num_decode": self._num_decode}
                self._collector.count_ids(position, rows_TK, **numbers)
            else:
                self._collector.count_ids_captured(position, rows_TK, self._state)
        except Exception as error:
            self._give_up(error)

    def _own(self, ids_TK: torch.Tensor) -> torch.Tensor:
        if self._dp_rank is None:
            return ids_TK
        from vllm.forward_context import get_forward_context

        metadata: Any = get_forward_context().dp_metadata
        rows_TK = own_rows(ids_TK, metadata, self._dp_rank)
        if rows_TK is None:
            raise ValueError(f"{len(ids_TK)} rows are routed, and whose they are cannot be told")
        return rows_TK

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        logger.error("isotherm: vLLM goes on, and its heat is not observed any more", exc_info=error)
