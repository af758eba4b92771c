"""A link that broke is made anew by all ranks, over gloo: threads of one process stand for the ranks."""

import os
import socket
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from torch.distributed import HashStore

from isotherm.control import Heartbeat, StoreRelink
from isotherm.errors import LinkError
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
