"""What a benchmark found: figures with their spread, and the targets that they are held to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Spread = Literal["p10 to p90", "median to p99", "95 % interval", "exact"]
"""What ``low`` and ``high`` of a figure are."""

_RESAMPLES = 4000


@dataclass(frozen=True)
class Figure:
    """One cell of a table: a value in ``unit``, how far it spreads, and over how many samples."""

    row: str
    column: str
    unit: str
    value: float
    low: float
    high: float
    spread: Spread
    samples: int

    @classmethod
    def exact(cls, row: str, column: str, unit: str, value: float) -> Figure:
        """What is counted, not sampled."""
        return cls(row, column, unit, value, value, value, "exact", 1)

    @classmethod
    def of(cls, row: str, column: str, unit: str, samples: Sequence[float]) -> Figure:
        """The median of samples, with the tenth and the ninetieth of a hundred."""
        low, middle, high = np.percentile(samples, (10, 50, 90)).tolist()
        return cls(row, column, unit, middle, low, high, "p10 to p90", len(samples))

    @classmethod
    def with_tail(cls, row: str, column: str, unit: str, samples: Sequence[float]) -> Figure:
        """The median of samples, with the ninety-ninth of a hundred."""
        middle, high = np.percentile(samples, (50, 99)).tolist()
        return cls(row, column, unit, middle, middle, high, "median to p99", len(samples))

    @classmethod
    def of_differences(cls, row: str, column: str, unit: str, differences: Sequence[float]) -> Figure:
        """The median of paired differences, with its 95 % interval by the percentile bootstrap (Efron
        1979), seeded: the median, since other processes make a few differences huge."""
        samples = np.asarray(differences, np.float64)
        drawn = np.random.default_rng(0).integers(0, len(samples), (_RESAMPLES, len(samples)))
        low, high = np.percentile(np.median(samples[drawn], axis=1), (2.5, 97.5)).tolist()
        return cls(row, column, unit, float(np.median(samples)), low, high, "95 % interval", len(samples))


@dataclass(frozen=True)
class Target:
    """A figure that is not to exceed ``limit``, or, ``at_least``, not to fall below it."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def ok(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


@dataclass(frozen=True)
class Section:
    """The figures of one table, what they include, and the targets that they are held to."""

    title: str
    note: str
    figures: tuple[Figure, ...]
    targets: tuple[Target, ...] = ()

    def figure(self, row: str, column: str) -> Figure:
        """The figure at ``row`` and ``column``.

        Raises:
            KeyError: there is none.
        """
        for figure in self.figures:
            if (figure.row, figure.column) == (row, column):
                return figure
        raise KeyError(f"no figure at row {row!r}, column {column!r} of {self.title!r}")


@dataclass(frozen=True)
class Report:
    """One run of a benchmark: the machine and all sections."""

    name: str
    machine: dict[str, str]
    seconds: float
    sections: tuple[Section, ...]

    @property
    def targets(self) -> tuple[Target, ...]:
        return tuple(target for section in self.sections for target in section.targets)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: ``targets`` stand at the top, each with ``ok``."""
        sections = []
        for section in self.sections:
            targets = [target.as_dict() for target in section.targets]
            sections.append({**asdict(section), "targets": targets})
        return {
            "name": self.name,
            "machine": self.machine,
            "seconds": self.seconds,
            "targets": [target.as_dict() for target in self.targets],
            "sections": sections,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Report:
        """The report that ``as_dict`` wrote."""
        sections = [
            Section(
                title=section["title"],
                note=section["note"],
                figures=tuple(Figure(**figure) for figure in section["figures"]),
                targets=tuple(
                    Target(target["name"], target["value"], target["limit"], target["at_least"])
                    for target in section["targets"]
                ),
            )
            for section in data["sections"]
        ]
        return cls(data["name"], data["machine"], data["seconds"], tuple(sections))
