"""Whether every rank was started with the same configuration."""

from __future__ import annotations

import numpy as np

from isotherm.control.link import Link
from isotherm.errors import PeerMismatchError


def check_peers(link: Link, settings: dict[str, object]) -> None:
    """Compares ``settings`` over all ranks; blocks until every rank has called it.

    Raises:
        PeerMismatchError: on every rank, naming the first setting that differs and its value on two
            ranks.
        LinkError: the group is broken.
    """
    lines = [f"{name}={value!r}" for name, value in sorted(settings.items())]
    data = "\n".join(lines).encode()
    sizes_G = link.all_gather(np.array([len(data)], np.int64))[:, 0]
    texts = [
        link.broadcast(data if link.rank == rank else None, int(size), source=rank).decode()
        for rank, size in enumerate(sizes_G)
    ]
    for rank, text in enumerate(texts):
        if text == texts[0]:
            continue
        first, other = set(texts[0].split("\n")), set(text.split("\n"))
        name = min(first ^ other).partition("=")[0]
        raise PeerMismatchError(
            f"rank {rank} was started with {_setting(other, name)}, rank 0 with "
            f"{_setting(first, name)}: start every rank with the same configuration"
        )


def _setting(lines: set[str], name: str) -> str:
    return next((line for line in lines if line.startswith(f"{name}=")), f"no {name}")
