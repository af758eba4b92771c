"""Items made ahead on another thread: in order, with their errors, and no further than asked."""

from __future__ import annotations

import threading

import pytest

import isotherm as iso
from isotherm.replay import Cluster, replay_trace
from isotherm.replay.ahead import DEPTH, made_ahead
from replay.made import drifting_windows

TOPOLOGY = iso.Topology.for_model(experts=8, redundant=4, ranks=4, nodes=2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("count", [0, 1, DEPTH, 3 * DEPTH])
def test_every_item_comes_once_and_in_order(threads, count):
    seen = []

    def items():
        for number in range(count):
            seen.append(threading.current_thread())
            yield number

    assert list(made_ahead(items(), lambda number: 10 * number, threads=threads)) == [
        10 * number for number in range(count)
    ]
    assert {thread is threading.current_thread() for thread in seen} <= {threads == 1}


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_comes_where_its_item_would_have(threads):
    def make(number):
        if number == 6:
            raise ValueError("the seventh")
        return number

    made = made_ahead(range(100), make, threads=threads)
    assert [next(made) for _ in range(6)] == list(range(6))
    with pytest.raises(ValueError, match="the seventh"):
        next(made)


def test_who_stops_asking_ends_the_thread_and_little_more_is_made():
    taken = []
    made = made_ahead(range(1000), taken.append, threads=2)
    next(made)
    made.close()
    assert len(taken) <= 2 * DEPTH
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("isotherm-ahead")]


def test_a_replay_is_the_same_on_any_number_of_threads():
    windows = drifting_windows(12, steps=600)
    config = iso.Config(mode="full", window_steps=8, confidence=0.0)
    one, *others = (replay_trace(windows, Cluster(TOPOLOGY), config, threads=n) for n in (1, 2, 3))
    assert all(other == one for other in others)
    assert one.moves > 0
    assert one.score is not None
