"""Stamps against the plain definition of happens-before: reachability in the graph of edges."""

from __future__ import annotations

import random

import pytest

from isotherm.testing.clocks import Kind, Lane


def test_a_lane_is_in_order_and_knows_itself() -> None:
    lane = Lane("heat", Kind.STREAM)
    first, second = lane.stamp(), lane.stamp()
    assert first.is_before(second)
    assert not second.is_before(first)
    assert not first.is_before(first)
    assert str(lane) == "stream 'heat'"


def test_lanes_are_apart_until_one_learns() -> None:
    one, other = Lane("one", Kind.STREAM), Lane("other", Kind.THREAD)
    early, known = one.stamp(), one.snapshot()
    late = one.stamp()
    apart = other.stamp()
    assert not early.is_ordered(apart)
    other.learn(known)
    behind = other.stamp()
    assert early.is_before(behind)
    assert not late.is_ordered(behind), "an event holds what came before it, and nothing behind it"
    assert not early.is_ordered(apart), "an edge says nothing about the past"


def test_learning_never_forgets() -> None:
    one, other = Lane("one", Kind.STREAM), Lane("other", Kind.STREAM)
    old = one.snapshot()
    stamp = one.stamp()
    other.learn(one.snapshot())
    other.learn(old)
    assert stamp.is_before(other.stamp())


@pytest.mark.parametrize("seed", range(20))
def test_stamps_are_reachability(seed: int) -> None:
    """Random operations and events on four lanes; edges kept in a matrix beside."""
    chance = random.Random(seed)
    lanes = [Lane(str(number), Kind.STREAM) for number in range(4)]
    stamps = []
    before: list[set[int]] = []  # operations that happen before each, by the closure of the edges
    seen: list[set[int]] = [set() for _ in lanes]
    events = []
    for _ in range(60):
        number = chance.randrange(4)
        match chance.choice(("work", "record", "wait")):
            case "work":
                before.append(set(seen[number]))
                seen[number].add(len(stamps))
                stamps.append(lanes[number].stamp())
            case "record":
                events.append((lanes[number].snapshot(), set(seen[number])))
            case "wait" if events:
                known, operations = chance.choice(events)
                lanes[number].learn(known)
                seen[number] |= operations
    for later, earlier_ones in enumerate(before):
        for earlier in range(len(stamps)):
            assert stamps[earlier].is_before(stamps[later]) == (earlier in earlier_ones)
