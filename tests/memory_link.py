"""A link between threads of one process: the real control code without sockets."""

from __future__ import annotations

import threading

import numpy as np

from isotherm.errors import LinkError


class _Room:
    def __init__(self, size):
        self.barrier = threading.Barrier(size, timeout=30)
        self.box = [None] * size


class MemoryLink:
    """Implements `isotherm.control.Link` for one of ``size`` threads.

    ``calls`` lists (kind, size) of each call. Ranks that make different calls at the same time, which a
    real group would mix up or wait in for ever, break the link on all of them.
    """

    def __init__(self, room, rank, size):
        self._room, self.rank, self.size = room, rank, size
        self.sent_bytes = 0
        self.calls = []

    def _swap(self, call, value):
        self.calls.append(call)
        room = self._room
        try:
            room.box[self.rank] = (call, value)
            room.barrier.wait()
            calls, values = zip(*room.box, strict=True)
            room.barrier.wait()
        except threading.BrokenBarrierError as error:
            raise LinkError(f"rank {self.rank} was left alone in {call}") from error
        if any(other != call for other in calls):
            room.barrier.abort()
            raise LinkError(f"the ranks call different things: {calls}")
        return values

    def all_gather(self, words_W, out=None):
        self.sent_bytes += words_W.nbytes
        rows = self._swap(("all_gather", words_W.dtype.name, len(words_W)), words_W.copy())
        return np.stack(rows, out=out)

    def all_reduce(self, array):
        self.sent_bytes += array.nbytes
        rows = self._swap(("all_reduce", array.dtype.name, array.size), array.copy())
        array[:] = np.sum(rows, axis=0, dtype=array.dtype)

    def broadcast(self, data, size, source):
        self.sent_bytes += size if data is not None else 0
        sent = self._swap(("broadcast", source, size), data)[source]
        assert len(sent) == size
        return sent

    def exchange(self, sends, receives):
        self.sent_bytes += sum(transfer.buffer.nbytes for transfer in sends)
        mail = self._swap(("exchange",), {(t.peer, t.tag): t.buffer.clone() for t in sends})
        for transfer in receives:
            transfer.buffer.copy_(mail[transfer.peer][self.rank, transfer.tag])


def memory_links(size):
    room = _Room(size)
    return [MemoryLink(room, rank, size) for rank in range(size)]
