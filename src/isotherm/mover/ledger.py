"""Retire, fill, publish: what every slot holds, as a state that all ranks advance alike.

A slot's content changes only while nobody can use it, so ranks need not change anything at the same
instant. A batch of slots is *retired* (share 0) in the tables of one epoch; when every rank has finished
a step with those tables the slots are dead, and are *filled*; when all have arrived they are *published*
in the tables of the next epoch, which also retires the next batch. A rank that still has the older table
uses only slots that are unchanged in both, so every mix of tables in flight is right.

Each transition is a function of the ledger and of headers gathered in a round, so the ledgers of all ranks
are equal after equal rounds. Where slots cannot be retired, `isotherm.mover.agreed` has the transitions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from isotherm.arrays import FloatArray, Int32Array, Int64Array, frozen
from isotherm.mover.schedule import Fill, schedule_fills
from isotherm.placement import EMPTY, Placement, Refill, Rounds, check_shares, digest
from isotherm.topology import Topology

BUFFERS = 4
"""Experts that a rank can hold beside its slots, where all ranks take up weights in the same step."""


class Phase(Enum):
    SETTLED = "settled"
    RETIRING = "retiring"
    FILLING = "filling"
    STAGING = "staging"
    AGREEING = "agreeing"


@dataclass(frozen=True)
class Rules:
    """How the way is made.

    Attributes:
        reshare: gives the shares of every placement on the way, whose retired and dead slots are empty.
        by_word: all ranks take up tables in the same step, by the engine's step word.
        limit, buffers: then, how many slots change in one step at most, and how many of one rank.
    """

    topology: Topology
    reshare: Callable[[Placement], FloatArray]
    by_word: bool = False
    limit: int = 16
    buffers: int = BUFFERS


@dataclass(frozen=True, eq=False)
class Ledger:
    """What each slot holds and what is under way.

    Attributes:
        content: int32 [layers, slots], the expert whose weights the slot holds; -1 from the moment it is
            dead until its new expert has arrived.
        version: int64 [layers, slots], counts the changes of content.
        shares: float64 [layers, slots], in force in the tables of ``epoch``; 0 where retired or empty.
        goal_shares: in force when the plan in progress is carried out; those in force when settled.
        epoch: number of the newest tables. All tables of one epoch are equal on all ranks.
        batch: the slots that are being retired or filled.
        rounds: the batches that follow, as the plan ordered them.
        goal: where slots cannot be retired, what they are to hold in the end; None when settled.
        since_step: the step that every rank had finished when the phase began.
    """

    content: Int32Array
    version: Int64Array
    shares: FloatArray
    experts: int
    goal_shares: FloatArray
    epoch: int = 0
    phase: Phase = Phase.SETTLED
    batch: tuple[Fill, ...] = ()
    rounds: tuple[tuple[Refill, ...], ...] = ()
    goal: Placement | None = None
    since_step: int = 0

    @classmethod
    def start(cls, placement: Placement, shares_LP: FloatArray) -> Ledger:
        """The ledger of weights as loaded."""
        return cls(
            content=placement.slot_to_expert,
            version=np.zeros(placement.slot_to_expert.shape, np.int64),
            shares=frozen(shares_LP, np.float64),
            experts=placement.experts,
            goal_shares=frozen(shares_LP, np.float64),
        )

    @property
    def placement(self) -> Placement:
        """What the slots hold now, dead ones empty."""
        return Placement(self.content, self.experts)

    @property
    def identity(self) -> int:
        """Names this content, versions included: a plan made for another is not carried out."""
        return digest(self.content.tobytes() + self.version.tobytes())


def accept(
    ledger: Ledger, goal: Placement, shares_LP: FloatArray, rounds: Rounds, rules: Rules, step: int
) -> Ledger:
    """Begins the way to ``goal`` by ``rounds``, from a ledger that is settled.

    The plan's own shares are in force when all its slots are filled; until then those of ``rules``.

    Raises:
        ValueError: the rounds do not lead there from what is, or leave an expert without a live replica on
            the way; the message names round, layer and slot.
    """
    assert ledger.phase is Phase.SETTLED, "what is under way is called off first"
    ordered = tuple(rounds)
    _check_rounds(ledger, goal, ordered)
    aimed = replace(ledger, goal_shares=frozen(shares_LP, np.float64), rounds=ordered)
    return _begin_batch(aimed, rules, step)


def retired(ledger: Ledger, step: int) -> Ledger:
    """Every rank has finished a step with the tables of this epoch: the batch is dead."""
    assert ledger.phase is Phase.RETIRING
    content_LP, version_LP = written(ledger, EMPTY)
    return replace(ledger, content=content_LP, version=version_LP, phase=Phase.FILLING, since_step=step)


def filled(ledger: Ledger, rules: Rules, step: int) -> Ledger:
    """The batch has arrived: publishes it, and retires the next one in the same epoch."""
    assert ledger.phase is Phase.FILLING
    content_LP, version_LP = written(ledger, None)
    published = replace(ledger, content=content_LP, version=version_LP, batch=())
    return _begin_batch(published, rules, step)


def called_off(ledger: Ledger, rules: Rules, step: int) -> Ledger:
    """The plan in progress is given up: what is, stays. A batch that is being retired is live again;
    one that is being filled stays empty, whatever has arrived of it, until a later plan fills it."""
    assert ledger.phase in (Phase.RETIRING, Phase.FILLING)
    shares_LP = live_shares(ledger.content, ledger.experts, rules)
    return replace(
        ledger,
        shares=shares_LP,
        goal_shares=shares_LP,
        epoch=ledger.epoch + 1,
        phase=Phase.SETTLED,
        batch=(),
        rounds=(),
        since_step=step,
    )


def written(ledger: Ledger, expert: int | None) -> tuple[Int32Array, Int64Array]:
    """Content and version with ``expert`` in the batch's slots; None: each its own."""
    content_LP, version_LP = ledger.content.copy(), ledger.version.copy()
    for fill in ledger.batch:
        content_LP[fill.layer, fill.target] = fill.expert if expert is None else expert
        version_LP[fill.layer, fill.target] += 1
    return frozen(content_LP, np.int32), frozen(version_LP, np.int64)


def live_shares(live_LP: Int32Array, experts: int, rules: Rules) -> FloatArray:
    """The shares of ``rules`` for what is live on the way, checked."""
    placement = Placement(live_LP, experts)
    shares_LP = rules.reshare(placement)
    check_shares(placement, shares_LP)
    return frozen(shares_LP, np.float64)


def _begin_batch(ledger: Ledger, rules: Rules, step: int) -> Ledger:
    """Retires the next round's slots; without one, the goal's own shares are in force."""
    begun = replace(ledger, epoch=ledger.epoch + 1, since_step=step)
    if not ledger.rounds:
        return replace(begun, shares=ledger.goal_shares, phase=Phase.SETTLED, batch=())
    refills, *rounds = ledger.rounds
    live_LP = ledger.content.copy()
    for refill in refills:
        live_LP[refill.layer, refill.slot] = EMPTY
    return replace(
        begun,
        shares=live_shares(live_LP, ledger.experts, rules),
        phase=Phase.RETIRING,
        batch=schedule_fills(refills, live_LP, rules.topology),
        rounds=tuple(rounds),
    )


def _check_rounds(ledger: Ledger, goal: Placement, rounds: tuple[tuple[Refill, ...], ...]) -> None:
    """Carries them out on paper."""
    content_LP = ledger.content.copy()
    for number, refills in enumerate(rounds):
        live_LP = content_LP.copy()
        for layer, slot, _, _ in refills:
            live_LP[layer, slot] = EMPTY
        for layer, slot, expert, _ in refills:
            lost = content_LP[layer, slot]
            if not (live_LP[layer] == expert).any() or not (lost == EMPTY or lost in live_LP[layer]):
                raise ValueError(
                    f"round {number} of the plan fills slot {slot} of layer {layer} with expert {expert} in "
                    f"place of {lost}, and leaves no live replica of one of them: give each expert one"
                )
        for layer, slot, expert, _ in refills:
            content_LP[layer, slot] = expert
    differing = np.argwhere(content_LP != goal.slot_to_expert)
    if len(differing):
        layer, slot = differing[0].tolist()
        raise ValueError(
            f"the plan's rounds leave expert {content_LP[layer, slot]} in slot {slot} of layer {layer}, its "
            f"goal has {goal.slot_to_expert[layer, slot]}: order the rounds for this goal and for what is; a "
            "layer without redundant slots needs the engine's step word"
        )
