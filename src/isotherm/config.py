"""What the user sets. What the process supplies (group, weights, device) is never in here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf
from typing import Any, Literal, get_args

Mode = Literal["off", "count", "observe", "shares", "full"]
MODES: tuple[Mode, ...] = get_args(Mode)

Split = Literal["shares", "near", "batch"]


@dataclass(frozen=True)
class Config:
    """The balancer's settings, the same on every rank.

    Raises:
        ValueError: a value out of range; the message names it and the rule.
    """

    mode: Mode = "observe"
    """off: map by the loaded placement, count nothing · count: count locally · observe: gather heat
    and say what would be done · shares: change shares · full: move weights too."""
    split: Split = "shares"
    """How a rank splits its tokens over replicas. shares: as planned · near: its own replicas first, then
    those on its node, as far as all ranks together send what is planned · batch: each large batch is levelled
    by its own counts, on the CPU. docs/routing.md has what each costs and reaches."""
    policy: str = "incremental"
    """The planner's policy; `isotherm doctor` lists them."""
    window_steps: int = 256
    """Steps in a window of heat."""
    slices: int = 2
    """Slices in a window: snapshots are taken every window_steps / slices steps."""
    max_imbalance: float = 1.03
    """The planner stops at this imbalance, in every layer."""
    min_gain: float = 0.005
    """A plan with moves is carried out when it lowers the overall imbalance by at least this, and pays."""
    max_moves: int = 64
    """Moves in one plan, over all layers; the layers that gain most come first."""
    confidence: float = 3.0
    """A change is made when its gain on heat that it was not planned on exceeds this many standard errors."""
    forecast: str = "changepoint"
    """How past windows become what is planned for; `isotherm doctor` lists the forecasts."""
    forecast_windows: int = 8
    """Windows remembered for it."""
    prefill_weight: float = 1.0
    """What a prefill token weighs when heats of the kinds are added up."""
    decode_weight: float = 1.0
    """What a decode token weighs."""
    objective: Literal["auto", "tokens", "reads"] = "auto"
    """What is levelled. tokens: tokens · auto: where windows tell in how many steps experts were active, the
    time to read their weights and to compute their tokens: reads decide in decode, tokens in prefill · reads:
    as auto, and a balancer has them counted, by a pass over its counts at the end of each step."""
    tokens_per_read: float = 256.0
    """Tokens that take as long to compute as an expert's weights to read."""
    locality_slack: float = 0.01
    """With split near on several nodes, where tokens are levelled: balancedness that shares may give up so
    that fewer pairs cross nodes."""
    robust: bool = False
    """Plan for the worst of several heats: those of the kinds, and of earlier traffic."""
    step_ms: float = 40.0
    """Milliseconds of a step whose ranks are balanced."""
    expert_share: float = 0.5
    """The part of such a step that scales with the hottest rank."""
    link_bytes_per_second: float = 25e9
    """How fast weights travel."""
    plan_life_steps: int = 20_000
    """How long traffic is taken to stay as it is before anything is known; learned from then on."""
    move_bytes_per_step: int = 64 * 2**20
    """Weights that may arrive per step, in bytes over all ranks."""
    moves_in_flight: int = 16
    """Slots retired at once."""
    check_moves: bool = False
    """Compare the checksums of every expert that moves at both ends of its way; a difference calls the plan
    off. A second look at every byte."""
    heartbeat_seconds: float = 0.02
    """Pause between two rounds of the heartbeat; a finished window wakes it sooner."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is unknown: choose one of {', '.join(MODES)}")
        if self.split not in get_args(Split):
            raise ValueError(f"split={self.split!r} is unknown: choose one of {', '.join(get_args(Split))}")
        positive = (
            "window_steps",
            "slices",
            "move_bytes_per_step",
            "moves_in_flight",
            "forecast_windows",
            "plan_life_steps",
        )
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is below 1: give a positive number")
        if self.window_steps % self.slices:
            raise ValueError(
                f"window_steps={self.window_steps} does not divide into slices={self.slices}: "
                "choose a multiple"
            )
        if not self.max_imbalance >= 1:
            raise ValueError(f"max_imbalance={self.max_imbalance} is below 1, the perfect balance")
        if not self.min_gain >= 0 or self.max_moves < 0:
            raise ValueError(f"min_gain={self.min_gain} and max_moves={self.max_moves} must not be negative")
        for name in ("prefill_weight", "decode_weight", "confidence"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name}={getattr(self, name)} must be finite and not negative")
        if self.prefill_weight == self.decode_weight == 0:
            raise ValueError("prefill_weight and decode_weight are both 0: no token would count")
        if not 0 <= self.expert_share <= 1:
            raise ValueError(f"expert_share={self.expert_share} is a part of a step: give 0 to 1")
        if self.objective not in ("auto", "tokens", "reads"):
            raise ValueError(f"objective={self.objective!r} is unknown: choose auto, tokens or reads")
        if not 0 <= self.locality_slack < 1:
            raise ValueError(
                f"locality_slack={self.locality_slack} is balancedness to give up: give 0 to below 1"
            )
        for name in ("step_ms", "link_bytes_per_second", "heartbeat_seconds", "tokens_per_read"):
            if not 0 < getattr(self, name) < inf:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0 and finite")

    @property
    def snapshot_steps(self) -> int:
        """Steps between two snapshots."""
        return self.window_steps // self.slices

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
