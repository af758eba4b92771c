"""What is known to go wrong between the packages and settings of a machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version

ENGINES = ("vllm", "sglang", "vllm-ascend", "tensorrt-llm")
"""Engines beside which Isotherm runs; they pin what it needs too."""

_SHARED = ("numba", "numpy", "torch", "transformers")
_BOUND = re.compile(r"\s*(==|>=|<=|<|>)\s*(\d+(?:\.\d+)*)")


def installed(package: str) -> str | None:
    """Its version, None where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def find_conflicts(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """In words, one each."""
    return (*_broken_bounds("isotherm"), *(each for engine in ENGINES for each in _broken_bounds(engine)),
            *_settings(environment))  # fmt: skip


def _broken_bounds(package: str) -> Iterator[str]:
    """What a package wants of those that it shares with us, where they are installed and are not so."""
    try:
        wanted = requires(package) or []
    except PackageNotFoundError:
        return
    for line in wanted:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0].lower()
        found = installed(name) if name in _SHARED and "python_version" not in marker else None
        if found is not None and not all(_holds(found, *bound) for bound in _BOUND.findall(requirement)):
            yield f"{package} wants {requirement.strip()}, and {name} {found} is installed"


def _holds(found: str, sign: str, wanted: str) -> bool:
    """Whether a version keeps to a bound; what is behind its numbers, as ``+cpu``, does not count."""
    numbers = re.match(r"\d+(\.\d+)*", found)
    if numbers is None:
        return True
    a, b = (tuple(int(part) for part in text.split(".")) for text in (numbers[0], wanted))
    width = max(len(a), len(b))
    a, b = (each + (0,) * (width - len(each)) for each in (a, b))
    return {"==": a == b, ">=": a >= b, "<=": a <= b, "<": a < b, ">": a > b}[sign]


def _settings(environment: Mapping[str, str]) -> Iterator[str]:
    if environment.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        yield "NUMBA_DISABLE_JIT is set: kernels run in Python, too slow to serve; unset it"
