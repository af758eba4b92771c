"""What options of the commands that read files have in common."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar

from rich.console import Console
from rich.progress import track

_Item = TypeVar("_Item")

InputFormat = Literal["isotherm", "sglang", "vllm-ascend", "tensorrt-llm", "deepseek", "token-ids"]
PlacementFormat = Literal["isotherm", "sglang", "vllm-ascend", "tensorrt-llm", "deepseek"]

_PAGE_WIDTH = 110
_PART = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?")


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """Layer numbers from ``3-60`` or ``0,2,5-7``.

    Raises:
        ValueError: anything else.
    """
    if text is None:
        return None
    layers: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"--moe-layers {text}: give numbers and spans of them, such as 3-60 or 0,2,5-7")
        layers.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(layers)


def print_json(value: Any) -> None:
    """JSON alone on stdout."""
    json.dump(value, sys.stdout)
    sys.stdout.write("\n")


def tell_notes(notes: tuple[str, ...]) -> None:
    """What a reader left out or took for granted, on stderr."""
    console = Console(stderr=True, highlight=False)
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def as_text(show: Callable[[Console], None]) -> str:
    """What ``show`` prints, as plain text of a page's width."""
    console = Console(width=_PAGE_WIDTH, file=io.StringIO(), record=True, highlight=False)
    show(console)
    return console.export_text()


def tracked(items: Sequence[_Item], doing: str) -> Iterable[_Item]:
    """The items one after another, with a bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    return track(items, doing, console=console, transient=True, disable=not console.is_terminal)
