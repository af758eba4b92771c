"""Where rank 0 plans: attempts that end oddly, or are called off as others hear of them, leave no trace."""

from types import SimpleNamespace

import numpy as np
import pytest

from isotherm import State
from isotherm.control import Limits, PlanDesk, Seen, Watch
from isotherm.streams import backend_for

LIMITS = Limits(
    planning_steps=8, moving_steps=8, backoff_steps=12, longest_backoff_steps=48, stalled_steps=1000
)


class Rank:
    """The state and the desk of one rank, whose attempts return when they are told to."""

    def __init__(self, rank):
        self.works = []
        self.watch = Watch(
            LIMITS, rank=rank, step=lambda: 5, call_off=lambda: self.desk.call_off(), on_round=lambda: None
        )
        self.desk = PlanDesk(
            lambda: SimpleNamespace(submit=self.works.append),
            lambda made: None,
            announce=lambda data: None,
            on_begun=lambda: self.watch.see(Seen.PLANNING),
            on_ended=lambda: self.watch.see(Seen.DECIDED),
            on_failed=lambda: self.watch.fail("planner_raised", "it raised"),
            poke=lambda: None,
        )


def make_round(ranks, before=None, between=None, after=None):
    """A round: what is given is done on every rank, before anybody acts, before the desk does, after it."""
    watch_GW = np.array([each.watch.header() for each in ranks])
    desk_GW = np.array([each.desk.header() for each in ranks])
    for each in ranks:
        if before is not None:
            before(each)
        each.watch.act(watch_GW, None)
        if between is not None:
            between(each)
        each.desk.act(desk_GW, None)
        if after is not None:
            after(each)
    return {each.watch.life.state for each in ranks}


def fail(each):
    each.watch.fail("room_failed", "a room of rank 1 failed")


def give_up(each):
    each.desk.call_off()
    each.watch.see(Seen.GIVEN_UP)


@pytest.fixture
def ranks():
    return [Rank(0), Rank(1)]


def test_an_attempt_is_told_by_its_beginning_and_its_end(ranks):
    ranks[0].desk.begin(lambda: 1)
    assert make_round(ranks) == {State.PLANNING}
    ranks[0].works.pop()()
    assert make_round(ranks) == {State.OBSERVING}


def test_a_failure_in_the_round_that_tells_of_an_attempt_leaves_nobody_planning(ranks):
    ranks[0].desk.begin(lambda: 1)
    assert make_round(ranks, before=fail) == {State.DEGRADED}
    assert make_round(ranks) == {State.DEGRADED}


def test_an_attempt_that_began_and_was_called_off_between_two_headers_is_not_told(ranks):
    def begin(each):
        if each is ranks[0]:
            each.desk.begin(lambda: 1)

    assert make_round(ranks, between=begin, after=give_up) == {State.OBSERVING}
    assert make_round(ranks) == {State.OBSERVING}
    begin(ranks[0])
    assert make_round(ranks) == {State.PLANNING}


def test_an_attempt_after_one_that_was_called_off_is_told_again(ranks):
    ranks[0].desk.begin(lambda: 1)
    make_round(ranks, before=give_up)
    ranks[0].desk.begin(lambda: 2)
    assert make_round(ranks) == {State.PLANNING}
    [first, second] = ranks[0].works
    first()  # late: its outcome is nobody's
    assert make_round(ranks) == {State.PLANNING}
    second()
    assert make_round(ranks) == {State.OBSERVING}


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_an_attempt_that_raises_is_over_whatever_it_raises(error):
    """A desk that never heard of it would plan no more after two of them."""
    failed = []
    desk = PlanDesk(
        lambda: backend_for("cpu").side_stream("planner"),
        lambda made: None,
        announce=lambda data: None,
        on_begun=lambda: None,
        on_ended=lambda: None,
        on_failed=lambda: failed.append(1),
        poke=lambda: None,
    )

    def work():
        raise error("on purpose")

    for _ in range(3):
        desk.begin(work)
        assert desk._returned.wait(10)
        desk.act(np.array([desk.header()]), None)
        assert desk.is_free
    desk.close(10.0)
    assert failed == [1] * 3
