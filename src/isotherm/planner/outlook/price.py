"""What a change is worth: step time saved over its life against bytes moved."""

from __future__ import annotations

from dataclasses import dataclass

from isotherm.config import Config


@dataclass(frozen=True)
class StepTime:
    """How long a step takes: the part ``expert_share`` of a balanced step waits for the hottest rank.

    Attributes:
        step_ms: milliseconds of a step whose ranks are balanced.
        expert_share: the part of it that scales with the hottest rank, 0 to 1.
    """

    step_ms: float
    expert_share: float

    @classmethod
    def of(cls, config: Config) -> StepTime:
        return cls(config.step_ms, config.expert_share)

    def at(self, imbalance: float) -> float:
        """Milliseconds of a step at this imbalance."""
        return self.step_ms * (1 + self.expert_share * (imbalance - 1))

    def saved_ms(self, gain: float, steps: float) -> float:
        """Milliseconds saved in ``steps`` whose imbalance is lower by ``gain``."""
        return self.step_ms * self.expert_share * gain * steps


def moving_ms(moved_bytes: float, link_bytes_per_second: float) -> float:
    """Milliseconds that a link takes for these bytes: what moving costs where nothing of it is hidden."""
    return 1e3 * moved_bytes / link_bytes_per_second
