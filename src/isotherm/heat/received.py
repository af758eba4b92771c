"""Counts that the engine hands over: tokens that the slots of this rank received, folded to experts."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import cache

import torch

from isotherm.errors import StreamError
from isotherm.heat.kernels import add_int32, add_int64
from isotherm.heat.totals import Totals
from isotherm.jit import entry
from isotherm.placement import Placement
from isotherm.status import Memory
from isotherm.streams import Backend, Completion, Stream
from isotherm.topology import Topology
from isotherm.window import KINDS

_FORMS = 2
"""Counts, and running sums of counts: a sum of running sums is the running sum of the sums, so each form
is added up as it comes and undone once, when it is folded."""


class SlotCounts:
    """What one stream adds up, and the table through which it folds.

    Used in the order of that stream alone. A count goes to the expert that its slot held when it was
    added: `fold` is enqueued before every change of the table.
    """

    def __init__(self, heat_KLE: torch.Tensor, slots_LS: torch.Tensor) -> None:
        layers, slots = slots_LS.shape
        kinds = len(KINDS)
        self.heat_KLE = heat_KLE
        self.slots_LS = slots_LS
        self.added_FKLS = heat_KLE.new_zeros((_FORMS, kinds, layers, slots))
        self.folded_KLS = heat_KLE.new_zeros((kinds, layers, slots))
        self.delta_KLS = heat_KLE.new_zeros((kinds, layers, slots))
        self.expert_LS = torch.zeros((layers, slots), dtype=torch.int64, device=heat_KLE.device)
        # Views, and addresses for the CPU's kernels, made once: for the call that is made in every layer.
        self.rows = [[list(of_kind) for of_kind in form] for form in self.added_FKLS]
        self._kernels = _host_kernels() if heat_KLE.is_cpu else {}
        self._addresses = [[[row_S.data_ptr() for row_S in kind] for kind in form] for form in self.rows]

    @staticmethod
    def nbytes(layers: int, slots: int) -> int:
        """Device bytes of one."""
        return layers * slots * (4 * (_FORMS + 2) * len(KINDS) + 8)

    def add(self, layer: int, counts_S: torch.Tensor, kind: int, *, cumulative: bool) -> None:
        """Adds counts, or a running sum of them."""
        kernel = self._kernels.get(counts_S.dtype)
        if kernel is None or not (counts_S.is_contiguous() and counts_S.is_cpu):
            self.rows[cumulative][kind][layer].add_(counts_S)
            return
        kernel(self._addresses[cumulative][kind][layer], counts_S.data_ptr(), counts_S.numel())

    def fold(self) -> None:
        """Adds what has come since the last fold to the loads of the slots, and to the experts that the
        table names."""
        counts_KLS, running_KLS = self.added_FKLS
        delta_KLS = self.delta_KLS
        torch.add(counts_KLS, running_KLS, out=delta_KLS)
        delta_KLS[..., 1:].sub_(running_KLS[..., :-1])
        delta_KLS.sub_(self.folded_KLS)
        self.folded_KLS.add_(delta_KLS)
        self.heat_KLE.scatter_add_(2, self.expert_LS.expand_as(delta_KLS), delta_KLS)
        for of_kind_LS in delta_KLS:
            self.slots_LS.add_(of_kind_LS)

    @property
    def read(self) -> list[torch.Tensor]:
        """What `fold` reads and does not write."""
        return [self.added_FKLS, self.expert_LS]

    @property
    def written(self) -> list[torch.Tensor]:
        """What `fold` writes."""
        return [self.delta_KLS, self.folded_KLS, self.heat_KLE, self.slots_LS]


class ReceivedCounts:
    """Received counts of one rank, added without anybody waiting.

    Counts that the engine lends (``borrowed``) are added at once, on its own stream, to a row that only
    that stream touches: a copy to keep them would cost the same. Counts that it hands over are kept, and
    added at the end of the step on the side stream, which forks from the engine's by one event and is
    never joined; a `Completion` owns them meanwhile. Where the device queues nothing (the CPU), or
    without a side stream, both are added at once.
    """

    def __init__(
        self,
        totals: Totals,
        topology: Topology,
        rank: int,
        placement: Placement,
        backend: Backend,
        side: Stream | None,
    ) -> None:
        self._backend = backend
        rows = zip(totals.heat_MKLE, totals.slots_MLP, strict=True)
        self._counts = [SlotCounts(heat_KLE, slots_LS) for heat_KLE, slots_LS in rows]
        self._main = self._counts[: totals.micro_batches]
        self._aside = self._counts[totals.micro_batches :]
        first = rank * topology.slots_per_rank
        self._local = slice(first, first + topology.slots_per_rank)
        self._slots_per_rank = topology.slots_per_rank
        self._handed: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._owned: deque[Completion] = deque()
        self._staging: deque[tuple[torch.Tensor, Completion | None]] = deque()
        shape_LS = self._counts[0].expert_LS.shape
        for _ in range(2):
            self._staging.append((backend.pinned_empty(shape_LS, torch.int64), None))
        self.load(placement, backend.main_stream(), side)

    @staticmethod
    def memory(layers: int, slots_per_rank: int, rows: int) -> Memory:
        """The buffers of ``rows`` rows of totals."""
        return Memory(
            device_bytes=rows * SlotCounts.nbytes(layers, slots_per_rank),
            pinned_bytes=2 * layers * slots_per_rank * 8,
        )

    def count(
        self,
        layer: int,
        counts_S: torch.Tensor,
        kind: int,
        *,
        cumulative: bool,
        borrowed: bool,
        micro_batch: int,
    ) -> None:
        """Adds ``counts_S``, or keeps them for the end of the step. On the engine's stream.

        Raises:
            ValueError: another number of slots than this rank has.
        """
        if counts_S.numel() != self._slots_per_rank:
            raise ValueError(
                f"counts of shape {tuple(counts_S.shape)} given, this rank has "
                f"{self._slots_per_rank} slots: give one count per local slot"
            )
        if not borrowed:
            self._backend.own(counts_S)
        if borrowed or not self._aside:
            self._main[micro_batch].add(layer, counts_S, kind, cumulative=cumulative)
        else:
            self._handed.append((self._aside[0].rows[cumulative][kind][layer], counts_S))

    def hand_over(self, main: Stream, side: Stream | None) -> None:
        """Ends a step: the side stream adds what was handed over. Never waits, and never fails: where the
        side stream has, its snapshots tell the heartbeat, and the engine goes on."""
        while self._owned and _is_over(self._owned[0]):
            self._owned.popleft()
        if not self._handed or side is None:
            return
        handed, self._handed = self._handed, []
        # The side stream reads what the engine's stream has just written.
        side.wait_event(main.record_event())
        side.submit(
            lambda: _add_all(handed),
            reads=[counts_S for _, counts_S in handed],
            writes=[self._aside[0].added_FKLS],
        )
        # Nobody waits for the side, so the counts must outlive the engine's interest in them.
        self._owned.append(Completion(side.record_event(), *(counts_S for _, counts_S in handed)))

    def fold(self, main: Stream, side: Stream | None) -> None:
        """Folds every row, each on its own stream. Never waits."""
        self._fold(self._main, main)
        if side is not None:
            self._fold(self._aside, side)

    def _fold(self, rows: list[SlotCounts], stream: Stream) -> None:
        for counts in rows:
            stream.submit(counts.fold, reads=counts.read, writes=counts.written)

    def load(self, placement: Placement, main: Stream, side: Stream | None) -> None:
        """From here on, in the order of each stream, slots hold what ``placement`` says; what was counted
        before goes to what they held before. Never waits."""
        experts_LS, completion = self._staging[0]
        if completion is not None and not _is_over(completion):
            # The device has not taken the last two yet: a third, rather than to wait or to overwrite.
            self._staging.appendleft((self._backend.pinned_empty(experts_LS.shape, torch.int64), None))
            experts_LS, _ = self._staging[0]
        self._staging.popleft()
        content_LS = placement.slot_to_expert[:, self._local]
        source = self._backend.caller_stream()
        # An empty slot receives nothing, so it may stand for any expert.
        source.submit(lambda: _fill(experts_LS, content_LS), writes=[experts_LS])
        self._fold(self._main, main)
        _load_all(self._main, experts_LS, main)
        taken = main.record_event()
        if side is not None and self._aside:
            # For the first load: its row was made on the engine's stream.
            side.wait_event(taken)
            self._fold(self._aside, side)
            _load_all(self._aside, experts_LS, side)
            taken = side.record_event()
        self._staging.append((experts_LS, Completion(taken, experts_LS)))


def _is_over(completion: Completion) -> bool:
    """Whether it is done, or failed: a failed stream reads nothing more."""
    try:
        return completion.done()
    except StreamError:
        return True


@cache
def _host_kernels() -> dict[torch.dtype, Callable[..., None]]:
    """torch's own addition takes three times as long where the counts are not of the sums' dtype."""
    return {torch.int64: entry(add_int64), torch.int32: entry(add_int32)}


def _add_all(handed: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for row_S, counts_S in handed:
        row_S.add_(counts_S)


def _fill(experts_LS: torch.Tensor, content_LS: object) -> None:
    experts_LS.numpy()[:] = content_LS
    experts_LS.clamp_min_(0)


def _load_all(rows: list[SlotCounts], experts_LS: torch.Tensor, stream: Stream) -> None:
    def load() -> None:
        for counts in rows:
            counts.expert_LS.copy_(experts_LS, non_blocking=True)

    stream.submit(load, reads=[experts_LS], writes=[counts.expert_LS for counts in rows])
