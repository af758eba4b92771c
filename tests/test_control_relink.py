"""A link that broke is made anew by all ranks, over gloo: threads of one process stand for the ranks."""

import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from torch.distributed import HashStore

from isotherm import Placement, State
from isotherm.control import Heartbeat, Limits, PlanDesk, Seen, StoreRelink, Watch, next_life
from isotherm.errors import LinkError
from isotherm.mover import Ledger
from isotherm.mover.parcel import pack, unpack
from memory_link import memory_links
from ranks import LOOPBACK

RANKS = 3


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", LOOPBACK)


def on_ranks(function, ranks=range(RANKS)):
    """What ``function(rank)`` returned or raised, in threads."""
    results = {}

    def run(rank):
        try:
            results[rank] = function(rank)
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return [results[rank] for rank in ranks]


def connected(number):
    """The socket behind a descriptor, in a list, if it is one that is connected."""
    with suppress(OSError):
        if os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
            end = socket.socket(fileno=os.dup(number))
            try:
                end.getpeername()
            except OSError:
                end.close()
            else:
                return [end]
    return []


def cut(sockets):
    """Ends every connection, as a reset does."""
    for end in sockets:
        with suppress(OSError):  # the other end was first
            end.shutdown(socket.SHUT_RDWR)
        end.close()


def relinks(store):
    return [StoreRelink(store, "test", rank=rank, size=RANKS, timeout_seconds=60) for rank in range(RANKS)]


def gathered(links):
    return on_ranks(lambda rank: links[rank].all_gather(np.array([10 + rank])).ravel().tolist())


def test_a_link_is_made_when_all_have_come_and_the_next_one_is_another():
    makers = relinks(HashStore())
    came = []

    def come(rank):
        if rank == 2:
            while len(came) < 3:  # the others look for it more than once
                time.sleep(0.01)
        return makers[rank](1, lambda: came.append(rank) or True)

    first = on_ranks(come)
    second = on_ranks(lambda rank: makers[rank](2, lambda: True))
    assert gathered(first) == gathered(second) == [[10, 11, 12]] * RANKS
    assert 2 not in came


def test_who_closes_is_not_kept_waiting():
    maker = relinks(HashStore())[0]
    assert maker(1, lambda: False) is None


class Sums:
    """Adds up what all ranks bring, in every round; ranks that a break left a round apart go on from the
    highest."""

    header_words = 1

    def __init__(self):
        self.total, self.rejoined, self.fails = 0, 0, None

    def header(self):
        return (1,)

    def act(self, headers_GW, link):
        if self.fails == self.total:
            self.fails = None
            raise LinkError("this rank alone")
        self.total += int(headers_GW.sum())

    def rejoin(self, link):
        self.total = int(link.all_gather(np.array([self.total])).max())
        self.rejoined += 1


class Nobody:
    """What a heartbeat is built with: where there is something that makes links, it makes the first too."""

    def __init__(self, rank):
        self.rank, self.size = rank, RANKS


def serve():
    """Hearts that beat over gloo, with their participants, what they lost, and their sockets."""
    makers, sums, lost = relinks(HashStore()), [Sums() for _ in range(RANKS)], [[] for _ in range(RANKS)]
    hearts = [
        Heartbeat(
            Nobody(rank),
            [sums[rank]],
            interval_seconds=0.001,
            on_lost=lambda error, rank=rank: lost[rank].append(type(error)),
        )
        for rank in range(RANKS)
    ]
    before = descriptors()
    on_ranks(lambda rank: hearts[rank].start(makers[rank]))
    return hearts, sums, lost, [end for number in descriptors() - before for end in connected(number)]


def descriptors():
    """Those that are open, where the system lists them."""
    folder = "/proc/self/fd"
    return {int(number) for number in os.listdir(folder)} if os.path.isdir(folder) else set()


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def close(hearts, sums):
    on_ranks(lambda rank: hearts[rank].close(60))
    assert not any(heart._thread.is_alive() for heart in hearts)
    assert len({heart.rounds for heart in hearts}) == 1
    assert len({each.total for each in sums}) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="the system does not list open sockets")
def test_rounds_go_on_over_another_link_after_every_socket_was_cut():
    hearts, sums, lost, sockets = serve()
    wait_for(lambda: min(each.total for each in sums) > 10 * RANKS)
    assert len(sockets) >= RANKS * (RANKS - 1)
    cut(sockets)
    wait_for(lambda: all(each.rejoined for each in sums))
    rounds = [heart.rounds for heart in hearts]
    assert min(rounds) > 10  # they go on, and do not begin anew
    wait_for(lambda: all(heart.rounds > before + 10 for heart, before in zip(hearts, rounds, strict=True)))
    close(hearts, sums)
    assert lost == [[LinkError]] * RANKS


def test_an_error_on_one_rank_alone_brings_all_to_another_link(caplog):
    """The others, who wait in a call for one that does not come, hear of it from their sockets."""
    hearts, sums, lost, sockets = serve()
    for end in sockets:
        end.close()  # only looked at
    wait_for(lambda: sums[1].total > 10 * RANKS)
    sums[1].fails = sums[1].total + RANKS
    wait_for(lambda: all(each.rejoined for each in sums))
    totals = [each.total for each in sums]
    wait_for(lambda: all(each.total > before for each, before in zip(sums, totals, strict=True)))
    close(hearts, sums)
    assert lost == [[LinkError]] * RANKS
    assert caplog.text.count("lost its link to the others") == RANKS
    assert caplog.text.count("has a link to the others again") == RANKS


def test_a_rank_that_closes_while_the_others_wait_for_it_lets_them_close_too():
    hearts, sums, lost, sockets = serve()
    for end in sockets:
        end.close()
    wait_for(lambda: sums[0].total > 0)
    hearts[2]._closing = True  # it goes with its link
    sums[0].fails = sums[0].total + RANKS
    wait_for(lambda: all(lost))
    for heart in hearts:
        assert heart.close(60)
    assert [each.rejoined for each in sums] == [0] * RANKS


class ByHand:
    """A stream whose work is done when the test says so."""

    def __init__(self):
        self.work = []

    def submit(self, work):
        self.work.append(work)


def test_an_attempt_from_before_the_break_is_nobodys_afterwards():
    streams, taken, begun = [], [], []

    def make_stream():
        streams.append(ByHand())
        return streams[-1]

    desk = PlanDesk(
        make_stream,
        taken.append,
        announce=taken.append,
        on_begun=lambda: begun.append(1),
        on_ended=lambda: None,
        on_failed=lambda: None,
        poke=lambda: None,
    )
    desk.begin(lambda: "before")
    desk.act(np.array([desk.header()]), None)
    desk.rejoin(None)
    assert desk.is_free
    desk.begin(lambda: "after")
    streams[0].work[0]()  # late, and of a number that comes again
    assert desk.header() == (1, 0, 0)
    streams[1].work[0]()
    desk.act(np.array([desk.header()]), None)
    assert taken == ["after"]
    assert len(begun) == 2


def test_all_are_in_the_same_state_after_a_break_whatever_they_saw_before_it():
    links = memory_links(2)
    limits = Limits(
        planning_steps=8, moving_steps=8, backoff_steps=6, longest_backoff_steps=99, stalled_steps=8
    )
    called_off = []
    watches = [
        Watch(
            limits,
            rank=link.rank,
            step=lambda rank=link.rank: 40 + rank,
            call_off=lambda: called_off.append(1),
            on_round=lambda: None,
        )
        for link in links
    ]
    watches[0].see(Seen.PLANNING)  # a round further than the other
    for watch in watches:
        watch.lose()
        assert watch.state[0] is State.DEGRADED
    assert len(called_off) == 2
    on_ranks(lambda rank: watches[rank].rejoin(links[rank]), range(2))
    assert watches[0].life == watches[1].life
    assert watches[0].life.state is State.DEGRADED
    assert (watches[0].life.clock_step, watches[0].life.is_lost) == (40, False)
    after = next_life(watches[0].life, Seen.ROUND, 46, limits)
    assert after.state is State.OBSERVING


def test_a_ledger_travels_whole():
    start = Ledger.start(Placement(np.array([[0, 1, 0, -1]]), 2), np.array([[0.25, 1.0, 0.75, 0.0]]))
    settled = replace(start, epoch=7, since_step=40)
    again = unpack(pack(settled))
    assert (again.identity, again.epoch, again.since_step) == (settled.identity, 7, 40)
    assert (again.shares == settled.shares).all()
    assert again.content.dtype == np.int32
    assert not again.content.flags.writeable
