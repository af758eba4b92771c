"""The heartbeat: equal rounds, announcements, and peers that do not fit."""

import threading

import numpy as np
import pytest

from isotherm.control import Announcer, Heartbeat, check_peers
from isotherm.errors import PeerMismatchError, ProtocolError
from isotherm.placement import digest
from memory_link import memory_links


def in_threads(functions):
    """Runs the functions at once; what each returned or raised."""
    results = [None] * len(functions)

    def run(index):
        try:
            results[index] = functions[index]()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return results


class Recorder:
    header_words = 1

    def __init__(self, word):
        self.word, self.seen = word, []

    def header(self):
        return (self.word,)

    def act(self, headers_GW, link):
        self.seen.append(headers_GW[:, 0].tolist())


def test_each_participant_reads_its_own_words_of_all_ranks():
    links = memory_links(3)
    recorders = [(Recorder(10 + link.rank), Recorder(20 + link.rank)) for link in links]
    hearts = [Heartbeat(link, pair, interval_seconds=1) for link, pair in zip(links, recorders, strict=True)]
    assert in_threads([heart.beat for heart in hearts]) == [True] * 3
    for first, second in recorders:
        assert first.seen == [[10, 11, 12]]
        assert second.seen == [[20, 21, 22]]


def test_threads_run_until_every_rank_closes():
    hearts = [Heartbeat(link, [], interval_seconds=0.001) for link in memory_links(2)]
    for heart in hearts:
        heart.start()
    assert not hearts[0].close(timeout_seconds=0.2)  # the other has not asked yet
    assert hearts[1].close(timeout_seconds=10)
    assert hearts[0].close(timeout_seconds=10)
    assert hearts[0].rounds == hearts[1].rounds > 1


def test_a_rank_in_another_round_is_named():
    hearts = [Heartbeat(link, [], interval_seconds=1) for link in memory_links(2)]
    hearts[1].rounds = 5
    first, second = in_threads([heart.beat for heart in hearts])
    assert isinstance(first, ProtocolError)
    assert "rank 1 is in round 5" in str(first)
    assert isinstance(second, ProtocolError)


def test_a_failing_participant_ends_the_heartbeat_and_says_so(caplog):
    failed = []

    class Failing(Recorder):
        def act(self, headers_GW, link):
            raise RuntimeError("broken")

    (link,) = memory_links(1)
    heart = Heartbeat(link, [Failing(0)], interval_seconds=0.001, on_failure=failed.append)
    heart.start()
    assert heart.close(timeout_seconds=10)
    assert [str(error) for error in failed] == ["broken"]
    assert "heartbeat of rank 0 stopped" in caplog.text


def test_an_announcement_reaches_every_rank_once_in_the_same_round():
    links = memory_links(3)
    heard = [[] for _ in links]
    announcers = [Announcer(digest, box.append) for box in heard]
    hearts = [
        Heartbeat(link, [announcer], interval_seconds=1)
        for link, announcer in zip(links, announcers, strict=True)
    ]
    in_threads([heart.beat for heart in hearts])
    announcers[0].announce(b"new tables")
    for _ in range(2):
        in_threads([heart.beat for heart in hearts])
    assert heard == [[b"new tables"]] * 3


def test_other_bytes_than_announced_are_refused():
    links = memory_links(2)
    announcers = [Announcer(lambda data: 7, print), Announcer(lambda data: 8, print)]
    announcers[0].announce(b"plan")
    hearts = [
        Heartbeat(link, [announcer], interval_seconds=1)
        for link, announcer in zip(links, announcers, strict=True)
    ]
    delivered, refused = in_threads([heart.beat for heart in hearts])
    assert delivered is True
    assert isinstance(refused, ProtocolError)
    assert "digest" in str(refused)


@pytest.mark.parametrize("other", [{"window": 8, "mode": "full"}, {"window": 16}])
def test_a_rank_with_another_configuration_is_named_on_every_rank(other):
    links = memory_links(3)
    mine = {"window": 16, "mode": "full"}
    settings = [mine, mine, other]
    errors = in_threads([lambda pair=pair: check_peers(*pair) for pair in zip(links, settings, strict=True)])
    assert all(isinstance(error, PeerMismatchError) for error in errors)
    assert all("rank 2 was started with" in str(error) for error in errors)


def test_equal_configurations_pass():
    assert in_threads([lambda link=link: check_peers(link, {"a": 1}) for link in memory_links(2)]) == [
        None,
        None,
    ]


def test_headers_are_int64():
    (link,) = memory_links(1)
    assert link.all_gather(np.array([2**62], np.int64)).dtype == np.int64
