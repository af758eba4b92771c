"""Which kind of text is read at which step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isotherm.demo.options import DemoOptions
from isotherm.demo.text import Corpus


@dataclass(frozen=True)
class Traffic:
    """The run's steps divided evenly over the kinds of text, one after the other."""

    corpus: Corpus
    options: DemoOptions

    @property
    def shifts(self) -> tuple[int, ...]:
        """The first step of each kind but the first."""
        kinds, steps = len(self.corpus.kinds), self.options.steps
        return tuple(-(-steps * kind // kinds) for kind in range(1, kinds))

    def kind(self, step: int) -> int:
        return sum(step >= shift for shift in self.shifts)

    def batch(self, step: int, rank: int) -> npt.NDArray[np.int64]:
        """This rank's byte ids of a step, int64 [sequences, length]: the same on every call."""
        options = self.options
        return self.corpus.batch(
            self.kind(step),
            step,
            rank,
            seed=options.seed,
            sequences=options.sequences,
            length=options.length,
        )
