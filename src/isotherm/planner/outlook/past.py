"""What the mind remembers from one window to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from isotherm.arrays import FloatArray
from isotherm.placement import Placement
from isotherm.planner.outlook.noise import is_change
from isotherm.planner.outlook.outlook import Glimpse, scatter_of
from isotherm.window import HeatWindow

_KEPT = 8
"""Lives of traffic and promises remembered."""

_LONGEST_REST = 64
"""Windows for which a question rests at most."""


@dataclass(frozen=True, eq=False)
class Promise:
    """Moves decided on: what the slots held before them, by how much the imbalance was to fall, since when
    traffic had been as it was, and whether a window has passed since they were done: the one in which they
    are done is half before, half after."""

    placement: Placement
    gain: float
    regime_step: int
    done: bool = False


@dataclass(frozen=True, eq=False)
class Rest:
    """A question that was answered with no. It is not asked again for 1, 2, 4, ... and at most 64 windows,
    unless things get worse by themselves: a search for moves costs a hundred times what looking at a window
    does, the best shares as much again.

    Attributes:
        reason: in words.
        level: the imbalance then.
        regime_step: since when traffic was as it was.
        times: how often in a row.
        wait: windows to come before it is asked again.
    """

    reason: str
    level: float
    regime_step: int
    times: int
    wait: int

    @classmethod
    def after(cls, last: Rest | None, reason: str, level: float, regime_step: int) -> Rest:
        """The rest behind an answer given now; ``last``: the one before it, None where that was another."""
        times = 1 if last is None else last.times + 1
        return cls(reason, level, regime_step, times, min(2 ** (times - 1), _LONGEST_REST) + 1)

    def lasts(self, level: float, worse: float, regime_step: int) -> bool:
        """Whether it is too early to ask again: traffic is the same, and ``level`` rose by less than
        ``worse``."""
        return self.wait > 0 and regime_step == self.regime_step and level < self.level + worse

    def shorter(self) -> Rest:
        """This, a window later."""
        return replace(self, wait=self.wait - 1)


@dataclass(frozen=True, eq=False)
class Past:
    """What was seen, decided, and came true. Whoever asks the mind keeps it, and gives it back.

    Attributes:
        glimpses: the newest windows, oldest first.
        regime_LE: the heat that traffic is compared with, to see when it changes; None before any window.
        regime_step: the step at which traffic last changed.
        lives: how many steps traffic stayed alike, the newest 8 times that it changed.
        plans: plans decided so far.
        promised: the imbalance that the newest plan promised; None before the first.
        open: moves of which it is not known yet what they brought.
        kept: (promised, true) gain of the newest 8 plans with moves.
        refusal: the newest search for moves, where it found none; by the imbalance that shares reach.
        calm: the newest decision, where that was to do nothing; by the imbalance in force.
    """

    glimpses: tuple[Glimpse, ...] = ()
    regime_LE: FloatArray | None = None
    regime_step: int = 0
    lives: tuple[int, ...] = ()
    plans: int = 0
    promised: float | None = None
    open: Promise | None = None
    kept: tuple[tuple[float, float], ...] = ()
    refusal: Rest | None = None
    calm: Rest | None = None

    def with_window(self, window: HeatWindow, most: int) -> Past:
        """This and ``window``; at most ``most`` windows are kept. A window without heat leaves no trace: an
        idle engine forgets nothing."""
        heat_LE = window.heat_LE.astype(np.float64)
        if not heat_LE.any():
            return self
        glimpse = Glimpse.of(window, self.glimpses[-1] if self.glimpses else None)
        refusal, calm = (rest and rest.shorter() for rest in (self.refusal, self.calm))
        past = replace(self, glimpses=(*self.glimpses, glimpse)[-most:], refusal=refusal, calm=calm)
        if self.regime_LE is None:
            return replace(past, regime_LE=heat_LE, regime_step=window.start_step)
        if not is_change(self.regime_LE, heat_LE, float(scatter_of(past.glimpses).max())):
            return past
        life = window.start_step - self.regime_step
        if life <= window.steps:  # in the midst of the window before: it is of neither traffic
            return replace(past, regime_LE=heat_LE)
        return replace(
            past,
            regime_LE=heat_LE,
            regime_step=window.start_step,
            lives=(*self.lives, life)[-_KEPT:],
        )

    def with_plan(self, promised: float, moved: Promise | None) -> Past:
        """This and a plan decided now."""
        refusal = self.refusal if moved is None else None
        open_ = moved or self.open
        return replace(self, plans=self.plans + 1, promised=promised, open=open_, refusal=refusal, calm=None)

    def with_refusal(self, reason: str, by_shares: float) -> Past:
        """This and a search just made that found no moves worth it."""
        return replace(self, refusal=Rest.after(self.refusal, reason, by_shares, self.regime_step))

    def with_calm(self, reason: str, level: float) -> Past:
        """This and a decision just made to do nothing. It rests no longer than a search for moves does."""
        calm = Rest.after(self.calm, reason, level, self.regime_step)
        if self.refusal is not None and self.refusal.wait > 0:
            calm = replace(calm, wait=min(calm.wait, self.refusal.wait))
        return replace(self, calm=calm)

    def with_outcome(self, placement: Placement, gain: Callable[[Placement], float]) -> Past:
        """This in a window without moves under way: what open moves brought, by ``gain`` over what the slots
        held before them, is known in the second such window. Forgotten are moves that were never made, and
        those after which traffic changed: how long it stays is another question (`steps_left`)."""
        if self.open is None:
            return self
        if placement == self.open.placement or self.regime_step != self.open.regime_step:
            return replace(self, open=None)
        if not self.open.done:
            return replace(self, open=replace(self.open, done=True))
        true = max(gain(self.open.placement), 0.0)
        kept = (*self.kept, (self.open.gain, true))[-_KEPT:]
        return replace(self, open=None, kept=kept)

    def steps_left(self, step: int, prior_steps: int) -> float:
        """How long traffic may stay as it is: what is left of its usual life (the geometric mean of those
        seen, the prior being one), or, past half of that, as long again as it has lasted."""
        usual = float(np.exp(np.mean(np.log([prior_steps, *self.lives]))))
        age = max(step - self.regime_step, 0)
        return max(usual - age, age)

    @property
    def trust(self) -> float:
        """The part of promised gains that came true, at most 1; one plan as large as the others is taken to
        have kept its promise, so that this never is 0."""
        if not self.kept:
            return 1.0
        promised, true = np.sum(self.kept, axis=0)
        one = promised / len(self.kept)
        return min(1.0, float((one + true) / (one + promised)))
