"""Spans of a timeline, as those see them who are watched."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

Span: TypeAlias = Callable[[str, str], AbstractContextManager[None]]
"""Opens a span of a timeline: ``with span(name, track):``. Must be cheap and thread-safe."""


def no_span(name: str, track: str) -> AbstractContextManager[None]:
    """The span of a run that nobody watches."""
    return nullcontext()
