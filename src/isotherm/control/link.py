"""What a round may do: collectives over CPU memory, and how they travel over torch.distributed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import ProcessGroupGloo

from isotherm.arrays import Int32Array, Int64Array
from isotherm.errors import LinkError

WordArray = TypeVar("WordArray", bound=Int32Array | Int64Array)


@dataclass(frozen=True)
class Transfer:
    """Bytes between this rank and ``peer``: a contiguous uint8 CPU tensor, read when sent and written
    when received. ``tag`` tells transfers of one exchange between the same two ranks apart."""

    buffer: torch.Tensor
    peer: int
    tag: int


class Link(Protocol):
    """Collectives over CPU memory, called in the same order on every rank.

    Each call blocks the calling thread, which is never the engine's, and raises `LinkError` when the
    group is broken: nothing may be called on it any more.
    """

    rank: int
    size: int

    sent_bytes: int
    """Payload that this rank has handed to its calls so far: words gathered, arrays summed, data that it
    broadcast, transfers that it sent. How the group multiplies it on the wire is the group's affair."""

    def all_gather(self, words_W: WordArray, out: WordArray | None = None) -> WordArray:
        """The words of every rank, [ranks, words] of the same dtype; written into ``out`` where given."""

    def all_reduce(self, array: Int32Array | Int64Array) -> None:
        """Sums ``array`` over the ranks, in place."""

    def broadcast(self, data: bytes | None, size: int, source: int) -> bytes:
        """The ``size`` bytes that rank ``source`` passes as ``data``; others pass None."""

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        """Makes this rank's transfers; returns when all have arrived."""


class LostLink:
    """What is left of a link: every call raises `LinkError`."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.sent_bytes = rank, size, 0

    def all_gather(self, words_W: WordArray, out: WordArray | None = None) -> WordArray:
        raise self._error

    def all_reduce(self, array: Int32Array | Int64Array) -> None:
        raise self._error

    def broadcast(self, data: bytes | None, size: int, source: int) -> bytes:
        raise self._error

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        raise self._error

    @property
    def _error(self) -> LinkError:
        return LinkError(f"rank {self.rank} has no link to the others")


class GroupLink:
    """A link over a process group of torch whose tensors live on the CPU (gloo).

    The group must be the balancer's own: nobody else may use it, from any thread. It need not be known to
    torch.distributed.

    Raises:
        ValueError: the group carries no CPU tensors.
    """

    def __init__(self, group: dist.ProcessGroup | ProcessGroupGloo) -> None:
        if isinstance(group, dist.ProcessGroup) and torch.device("cpu") not in group._device_types:
            kinds = ", ".join(sorted(device.type for device in group._device_types)) or "no"
            raise ValueError(
                f"the group carries {kinds} tensors, and ranks talk through CPU memory: give a gloo group "
                "that nobody else uses, torch.distributed.new_group(backend='gloo')"
            )
        # The backend has the same calls, whatever its stubs say.
        self._group = cast(dist.ProcessGroup, group)
        self.rank = group.rank()
        self.size = group.size()
        self.sent_bytes = 0

    def over(self, group: ProcessGroupGloo) -> GroupLink:
        """As this one is, over another group of the same ranks."""
        other = copy.copy(self)
        other._group = cast(dist.ProcessGroup, group)
        return other

    def all_gather(self, words_W: WordArray, out: WordArray | None = None) -> WordArray:
        if out is None:
            out = cast(WordArray, np.empty((self.size, len(words_W)), words_W.dtype))
        self.sent_bytes += words_W.nbytes
        with self._errors("all_gather"):
            rows = list(torch.from_numpy(out))
            self._group.allgather([rows], [torch.from_numpy(words_W)]).wait()
        return out

    def all_reduce(self, array: Int32Array | Int64Array) -> None:
        self.sent_bytes += array.nbytes
        with self._errors("all_reduce"):
            self._group.allreduce([torch.from_numpy(array)]).wait()

    def broadcast(self, data: bytes | None, size: int, source: int) -> bytes:
        buffer = np.empty(size, np.uint8)
        if data is not None:
            buffer[:] = np.frombuffer(data, np.uint8)
            self.sent_bytes += size
        with self._errors("broadcast"):
            self._group.broadcast(torch.from_numpy(buffer), source).wait()
        return buffer.tobytes()

    def exchange(self, sends: Sequence[Transfer], receives: Sequence[Transfer]) -> None:
        self.sent_bytes += sum(t.buffer.nbytes for t in sends)
        group = self._group
        with self._errors("exchange"):
            works = [group.recv([t.buffer], t.peer, t.tag) for t in receives]
            works += [group.send([t.buffer], t.peer, t.tag) for t in sends]
            for work in works:
                work.wait()

    @contextmanager
    def _errors(self, call: str) -> Iterator[None]:
        """torch.distributed raises RuntimeError for whatever happens to a group."""
        try:
            yield
        except RuntimeError as error:
            raise LinkError(
                f"{call} of rank {self.rank} failed, so a rank has died, left or been silent for longer "
                f"than the group's time-out: {error}"
            ) from error
