"""A timeline of what ran when, for chrome://tracing and ui.perfetto.dev."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class SpanRecord:
    """``name`` on ``track`` of ``rank``, in microseconds of the wall clock's epoch."""

    name: str
    track: str
    rank: int
    start_us: float
    duration_us: float


class Timeline:
    """Collects the spans of one rank. ``span`` may be called from any thread."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        # Spans are timed by the monotonic clock and shifted once, so that ranks line up.
        self._shift_ns = time.time_ns() - time.perf_counter_ns()
        self.records: list[SpanRecord] = []

    def span(self, name: str, track: str) -> AbstractContextManager[None]:
        """Records the time that the block takes."""
        return self._span(name, track)

    @contextmanager
    def _span(self, name: str, track: str) -> Iterator[None]:
        begun = time.perf_counter_ns()
        try:
            yield
        finally:
            ended = time.perf_counter_ns()
            start_us = (begun + self._shift_ns) / 1e3
            self.records.append(SpanRecord(name, track, self._rank, start_us, (ended - begun) / 1e3))


def write_chrome_trace(path: Path, records: Iterable[SpanRecord]) -> None:
    """Writes spans as Chrome trace events: a process per rank, a track per name of track."""
    records = sorted(records, key=lambda record: record.start_us)
    origin = records[0].start_us if records else 0.0
    tracks = sorted({(record.rank, record.track) for record in records})
    number = {track: index for index, track in enumerate(tracks)}
    events: list[dict[str, Any]] = []
    ranks = sorted({rank for rank, _ in tracks})
    events += [_name("process_name", rank, 0, f"rank {rank}") for rank in ranks]
    events += [_name("thread_name", rank, tid, track) for (rank, track), tid in number.items()]
    events += [
        {
            "name": record.name,
            "ph": "X",
            "pid": record.rank,
            "tid": number[record.rank, record.track],
            "ts": record.start_us - origin,
            "dur": record.duration_us,
        }
        for record in records
    ]
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}))


def _name(kind: str, rank: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": rank, "tid": tid, "args": {"name": name}}
