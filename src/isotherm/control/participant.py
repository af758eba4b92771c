"""Who takes part in rounds, and how each fares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from isotherm.arrays import Int64Array
from isotherm.control.link import Link

_LONGEST_REST = 1024
"""Rounds that a participant rests at most, before it is tried again."""


class Participant(Protocol):
    """Owns ``header_words`` int64 words of each header, and acts on the gathered ones."""

    header_words: int

    def header(self) -> Sequence[int]:
        """This rank's words of the next round. Reads local state only; never waits. Called in every
        round, after a failure too."""

    def act(self, headers_GW: Int64Array, link: Link) -> bool:
        """Makes the calls on ``link`` that ``headers_GW`` (this participant's words of all ranks, valid
        during the call) call for. Whether it has more to do soon.

        Which calls must depend on ``headers_GW`` and on what earlier rounds agreed, nothing else. What it
        raises, it must raise after them: a rank that leaves one out leaves the others waiting in it until
        the group's time-out.
        """

    def rejoin(self, link: Link) -> None:
        """Goes on over a link that was made in the place of one that broke. The ranks may be a round apart:
        one of them may have acted on headers that another never got. Makes the same calls on every rank, and
        leaves what all ranks must know alike the same on all of them."""


class Seat:
    """One participant, its words, and how it fares: the same on every rank, but for what failed here."""

    def __init__(self, participant: Participant, number: int, first: int) -> None:
        self.participant = participant
        self.name = type(participant).__name__
        self.bit = 1 << number
        self.words = slice(first, first + participant.header_words)
        self.error: BaseException | None = None  # raised here, and not yet told
        self.streak = 0
        self.rests_until = 0

    def is_resting(self, round_number: int) -> bool:
        return round_number < self.rests_until

    def rest(self, round_number: int) -> None:
        """Rests from this round on, for longer after each failure in a row. A header that fails while it
        rests makes the rest one round longer."""
        if self.is_resting(round_number):
            self.rests_until += 1
            return
        self.streak += 1
        self.rests_until = round_number + self._rest_rounds

    def recover(self, round_number: int) -> None:
        """Forgets its failures once it has acted for as long as it rested."""
        if self.streak and round_number - self.rests_until > self._rest_rounds:
            self.streak = 0

    def forget(self) -> None:
        """As new: rounds begin anew."""
        self.error, self.streak, self.rests_until = None, 0, 0

    @property
    def _rest_rounds(self) -> int:
        return int(min(2.0**self.streak, _LONGEST_REST))
