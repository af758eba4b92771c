"""What options of the commands that read files have in common."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from rich.console import Console
from rich.progress import track

from isotherm.topology import Topology

if TYPE_CHECKING:
    from isotherm.traces import HeatHeader

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
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"--moe-layers {text}: {first}-{last} ends before it begins")
        layers.extend(range(first, last + 1))
    return tuple(layers)


def unknown_kind(kind: str, known: Sequence[str]) -> ValueError:
    """The error where a file does not know the kind of tokens that was asked for."""
    if len(known) == 1:
        return ValueError(f"--kind {kind}: the file does not tell kinds of tokens apart; leave it out")
    return ValueError(f"--kind {kind}: the file knows {', '.join(known)}")


def imagined_topology(
    header: HeatHeader, *, ranks: int | None, nodes: int | None, redundant: int | None
) -> Topology:
    """The cluster that options describe; where they leave ranks out, the one that the heat was collected on.

    ``nodes`` and ``redundant`` left out are 1 and 0 of ranks that are given, and the file's otherwise.

    Raises:
        ValueError: nobody says how many ranks there are, or the numbers do not fit together.
    """
    own = header.topology
    if ranks is not None:
        ranks, nodes, redundant = ranks, nodes or 1, redundant or 0
    elif own is not None:
        ranks, nodes = own.ranks, own.nodes if nodes is None else nodes
        redundant = own.slots - header.experts if redundant is None else redundant
    else:
        raise ValueError("--ranks is missing, and the file does not say on how many ranks it was collected")
    return Topology.for_model(experts=header.experts, redundant=redundant, ranks=ranks, nodes=nodes)


def print_json(value: Any) -> None:
    """JSON alone on stdout."""
    json.dump(value, sys.stdout)
    sys.stdout.write("\n")


def tell_notes(notes: tuple[str, ...]) -> None:
    """What a reader left out or took for granted, on stderr."""
    console = Console(stderr=True, highlight=False)
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def tell_assumed_layers(format: str, layer_ids: Sequence[int], model_layers: int | None) -> None:
    """SGLang is given a row for every layer of the model; a row too few shifts all others without a word."""
    if format == "sglang" and model_layers is None:
        note = (
            f"the model is taken to have {len(layer_ids)} layers, all of them MoE layers: where it has dense "
            "ones, give --moe-layers and --model-layers"
        )
        tell_notes((note,))


def as_text(show: Callable[[Console], None]) -> str:
    """What ``show`` prints, as plain text of a page's width."""
    console = Console(width=_PAGE_WIDTH, file=io.StringIO(), record=True, highlight=False)
    show(console)
    return console.export_text()


def tracked(items: Sequence[_Item], doing: str) -> Iterable[_Item]:
    """The items one after another, with a bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    return track(items, doing, console=console, transient=True, disable=not console.is_terminal)
