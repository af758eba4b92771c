"""The heartbeat: equal rounds, announcements, and peers that do not fit."""

import logging
import threading

import numpy as np
import pytest
import torch.distributed as dist

from isotherm.control import Announcer, GroupLink, Heartbeat, check_peers
from isotherm.errors import LinkError, PeerFailedError, PeerMismatchError, ProtocolError
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


def beat_all(hearts):
    return in_threads([heart.beat for heart in hearts])


class Failing(Recorder):
    """Raises in its first act."""

    def act(self, headers_GW, link):
        super().act(headers_GW, link)
        raise RuntimeError("broken")


def test_a_failure_is_told_to_every_rank_and_its_participant_rests_on_all(caplog):
    links = memory_links(3)
    heard = [[] for _ in links]
    pairs = [(Failing(0) if link.rank == 1 else Recorder(0), Recorder(1)) for link in links]
    hearts = [
        Heartbeat(
            link, pair, interval_seconds=1, on_failure=lambda name, error, box=box: box.append((name, error))
        )
        for link, pair, box in zip(links, pairs, heard, strict=True)
    ]
    assert beat_all(hearts) == [True] * 3
    assert [len(box) for box in heard] == [0, 0, 0]  # all hear of it in the next round
    acted = []
    for _ in range(10):
        assert beat_all(hearts) == [True] * 3
        assert len({(len(a.seen), len(b.seen)) for a, b in pairs}) == 1
        acted.append(len(pairs[0][0].seen))
    # It fails in rounds 0, 3, 8: rests of 2, 4, ... rounds, each begun in the round that told of it.
    assert acted == [1, 1, 2, 2, 2, 2, 2, 3, 3, 3]
    assert len(pairs[0][1].seen) == 11  # the other participant acted in every round
    kinds = [[type(error) for _, error in box] for box in heard]
    assert kinds == [[PeerFailedError] * 3, [RuntimeError] * 3, [PeerFailedError] * 3]
    assert "rank 1 failed" in str(heard[0][0][1])
    assert caplog.text.count("Failing of rank 1 failed; the other ranks are told") == 1
    assert caplog.text.count("of rank 1 failed: it rests") == 3  # once on each rank
    assert links[0].calls == links[1].calls == links[2].calls
    for heart in hearts:
        heart.close(1)
    assert beat_all(hearts) == [False] * 3


def test_a_participant_that_acted_long_enough_is_trusted_again():
    class FailsTwice(Recorder):
        def act(self, headers_GW, link):
            super().act(headers_GW, link)
            if len(self.seen) in (1, 8):
                raise RuntimeError("broken")

    (link,) = memory_links(1)
    recorder = FailsTwice(0)
    heart = Heartbeat(link, [recorder], interval_seconds=1)
    acted = []
    for _ in range(14):
        heart.beat()
        acted.append(len(recorder.seen))
    assert acted == [1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 9, 10]  # both rests are the shortest


@pytest.mark.parametrize("words", [RuntimeError, (1, 2, 3)])
def test_a_header_that_fails_is_told_in_its_own_round(words):
    class Broken(Recorder):
        def header(self):
            if isinstance(words, type):
                raise words("no words")
            return words

    links = memory_links(2)
    pairs = [(Broken(0) if link.rank == 0 else Recorder(0), Recorder(1)) for link in links]
    heard = [[] for _ in links]
    hearts = [
        Heartbeat(link, pair, interval_seconds=1, on_failure=lambda name, error, box=box: box.append(name))
        for link, pair, box in zip(links, pairs, heard, strict=True)
    ]
    for _ in range(5):
        assert beat_all(hearts) == [True] * 2
    assert [[len(recorder.seen) for recorder in pair] for pair in pairs] == [[0, 5]] * 2
    assert heard == [["Broken"], ["Recorder"]]  # told once, though it goes on failing


def test_headers_are_asked_for_after_a_failure_too():
    """What a header takes from the engine's thread would pile up otherwise."""

    class Asked(Recorder):
        asked = 0

        def header(self):
            self.asked += 1
            return super().header()

    (link,) = memory_links(1)
    asked = Asked(0)
    heart = Heartbeat(link, [Failing(0), asked], interval_seconds=1)
    for _ in range(5):
        heart.beat()
    assert (asked.asked, len(asked.seen)) == (5, 5)


def test_a_broken_link_ends_the_heartbeat_and_says_so(caplog):
    failed = []

    class Broken(Recorder):
        def act(self, headers_GW, link):
            raise LinkError("a rank has died")

    (link,) = memory_links(1)
    heart = Heartbeat(link, [Broken(0)], interval_seconds=0.001, on_lost=failed.append)
    heart.start()
    heart._thread.join(10)
    assert not heart._thread.is_alive()
    assert heart.close(timeout_seconds=10)
    assert [str(error) for error in failed] == ["a rank has died"]
    assert caplog.text.count("heartbeat of rank 0 stopped") == 1


class Gate:
    """Stands where the heartbeat pauses: notes each pause, and pokes where told. Closes at the end."""

    def __init__(self, heart, pokes, rounds):
        self._heart, self._pokes, self._rounds = heart, pokes, rounds
        self.pauses = []

    def acquire(self, timeout):
        self.pauses.append(timeout)
        if len(self.pauses) == self._rounds:
            self._heart.close(0)
        return len(self.pauses) in self._pokes


class Busy(Recorder):
    """Has something to do in some rounds."""

    def act(self, headers_GW, link):
        super().act(headers_GW, link)
        return len(self.seen) in self.word

    def header(self):
        return (0,)


def pauses(busy, pokes, rounds, **settings):
    (link,) = memory_links(1)
    heart = Heartbeat(link, [Recorder(0), Busy(busy)], **settings)
    heart._gate = gate = Gate(heart, pokes, rounds)
    heart._run()
    return gate.pauses


def test_quiet_rounds_double_the_pause_until_something_happens():
    found = pauses({5}, {8}, 12, interval_seconds=0.1, idle_seconds=0.5)
    quiet = [0.1, 0.2, 0.4, 0.5]  # the first round was not quiet: it has just begun
    assert found == pytest.approx([*quiet, *[0.1, 0.2, 0.4, 0.5], *[0.1, 0.2, 0.4, 0.5]])


def test_a_poke_on_one_rank_shortens_the_pauses_of_all():
    links = memory_links(2)
    hearts = [Heartbeat(link, [], interval_seconds=0.1, idle_seconds=0.5) for link in links]
    gates = [Gate(heart, pokes, 6) for heart, pokes in zip(hearts, [{3}, set()], strict=True)]
    for heart, gate in zip(hearts, gates, strict=True):
        heart._gate = gate
    in_threads([heart._run for heart in hearts])
    for gate in gates:
        assert gate.pauses == pytest.approx([0.1, 0.2, 0.4, 0.1, 0.2, 0.4])


def test_an_interval_above_the_idle_pause_stays_what_it_is():
    assert pauses(set(), set(), 3, interval_seconds=2.0, idle_seconds=1.0) == [2.0] * 3


def test_an_idle_rank_sends_next_to_nothing():
    """256 steps of 40 ms and then a window: what headers alone send, at the default pauses."""
    (link,) = memory_links(1)
    heart = Heartbeat(link, [Recorder(0) for _ in range(16)], interval_seconds=0.02)
    clock = 0.0

    class Clock(Gate):
        def acquire(self, timeout):
            nonlocal clock
            before, clock = clock, clock + timeout
            if clock >= 2 * 128 * 0.04:
                heart.close(0)
            return clock // (128 * 0.04) != before // (128 * 0.04)  # a poke for each snapshot

    heart._gate = Clock(heart, (), 0)
    heart._run()
    assert link.sent_bytes == heart.rounds * 8 * (5 + 16)
    assert 10 < heart.rounds < 40
    assert link.sent_bytes < 16 * 1024


def test_a_poke_ends_a_pause_at_once():
    (link,) = memory_links(1)
    heart = Heartbeat(link, [], interval_seconds=30)
    heart.poke()
    heart.poke()  # twice is once
    heart.start()
    woken = threading.Event()
    for _ in range(200):
        if heart.rounds >= 2:
            break
        woken.wait(0.01)
    assert heart.rounds == 2
    assert heart.close(timeout_seconds=10)


def test_a_link_counts_what_this_rank_hands_over():
    links = memory_links(2)

    def talk(link):
        link.all_gather(np.zeros(3, np.int64))
        link.all_gather(np.zeros(3, np.int32))
        link.all_reduce(np.zeros(5, np.int32))
        link.broadcast(b"1234567" if link.rank == 1 else None, 7, 1)
        return link.sent_bytes

    assert in_threads([lambda link=link: talk(link) for link in links]) == [24 + 12 + 20, 24 + 12 + 20 + 7]


class Steps:
    """Ranks whose steps are set by hand."""

    def __init__(self, ranks, **settings):
        self.now = [0] * ranks
        self.hearts = [
            Heartbeat(link, [], interval_seconds=1, step=lambda r=link.rank: self.now[r], **settings)
            for link in memory_links(ranks)
        ]

    def beat(self, *now):
        self.now[:] = now
        assert len(set(beat_all(self.hearts))) == 1
        lagging = {heart.lagging for heart in self.hearts}
        assert len(lagging) == 1
        return lagging.pop()


def test_a_rank_that_lags_is_named_once_until_it_has_caught_up(caplog):
    steps = Steps(3, lag_steps=10)
    assert steps.beat(0, 0, 0) == ()
    assert steps.beat(50, 40, 50) == ()  # the first round in which rank 1 may just have told it early
    assert steps.beat(90, 40, 90) == ()  # 10 behind where the others were
    assert steps.beat(95, 79, 95) == (1,)
    assert steps.beat(96, 90, 96) == (1,)  # better, and not there yet
    assert steps.beat(97, 96, 60) == (2,)
    assert steps.beat(98, 97, 97) == ()
    assert steps.beat(200, 200, 98) == ()
    assert steps.beat(201, 201, 98) == (2,)
    text = caplog.text
    assert text.count("rank 1 is at step 79 where rank 0 has passed step 90") == 3  # once on each rank
    assert text.count("rank 2 is at step") == 6
    assert text.count("rank 0 is at") == 0


def test_a_rank_that_is_never_to_be_named_is_not(caplog):
    steps = Steps(2)
    for now in range(0, 10_000, 1000):
        assert steps.beat(now, 0) == ()
    assert not caplog.text


def test_ranks_that_ended_other_steps_are_named_when_closing(caplog):
    steps = Steps(4)
    steps.beat(96, 95, 96, 90)
    for heart in steps.hearts:
        heart.close(1)
    steps.beat(96, 95, 96, 94)
    warning = "rank 1 ended 95 steps, rank 3 ended 94 steps, rank 0 96: every rank must end the same steps"
    assert caplog.text.count(warning) == 4
    assert len(caplog.records) == 4


def test_equal_steps_say_nothing_when_closing(caplog):
    steps = Steps(2)
    for heart in steps.hearts:
        heart.close(1)
    with caplog.at_level(logging.INFO, "isotherm"):
        steps.beat(7, 7)
    assert not caplog.records


class Announced:
    """Ranks with an announcer each, whose digests can be told to differ."""

    def __init__(self, ranks, digests=None):
        self.links = memory_links(ranks)
        self.heard = [[] for _ in self.links]
        self.refused = [[] for _ in self.links]
        digests = digests or [digest] * ranks
        self.announcers = [
            Announcer(*each)
            for each in zip(digests, self.appends(self.heard), self.appends(self.refused), strict=True)
        ]
        self.hearts = [
            Heartbeat(link, [announcer], interval_seconds=1)
            for link, announcer in zip(self.links, self.announcers, strict=True)
        ]

    @staticmethod
    def appends(boxes):
        return [box.append for box in boxes]

    def beat(self, rounds=1):
        for _ in range(rounds):
            assert beat_all(self.hearts) == [True] * len(self.hearts)
        calls = [link.calls for link in self.links]
        assert all(each == calls[0] for each in calls)


def test_an_announcement_reaches_every_rank_once_in_the_same_round():
    ranks = Announced(3)
    ranks.beat()
    ranks.announcers[0].announce(b"new tables")
    ranks.beat()
    assert ranks.heard == [[]] * 3  # not before every rank has said that it has these bytes
    ranks.announcers[0].announce(b"newer")
    ranks.beat()
    assert ranks.heard == [[b"new tables"]] * 3
    ranks.beat(3)
    assert ranks.heard == [[b"new tables", b"newer"]] * 3
    assert ranks.refused == [[]] * 3


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_other_bytes_than_announced_are_taken_by_nobody(rank):
    digests = [digest] * 3
    digests[rank] = lambda data: 8
    ranks = Announced(3, digests)
    ranks.announcers[0].announce(b"plan")
    ranks.beat(4)
    assert ranks.heard == [[]] * 3
    wrong = (1, 2) if rank == 0 else (rank,)  # what rank 0 told is what the others find wrong
    assert ranks.refused == [[wrong]] * 3


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_what_is_called_off_is_taken_by_nobody(rounds):
    ranks = Announced(2)
    ranks.announcers[0].announce(b"plan")
    ranks.beat(rounds)
    for announcer in ranks.announcers:
        announcer.call_off()
    ranks.announcers[0].announce(b"another")
    ranks.beat(3)
    taken = [b"plan", b"another"] if rounds == 2 else [b"another"]
    assert (ranks.heard, ranks.refused) == ([taken] * 2, [[], []])


class CallsOff:
    """Calls off in the middle of a round, before the announcer acts."""

    header_words = 1

    def __init__(self, announcer, at):
        self.announcer, self.left = announcer, at

    def header(self):
        return (0,)

    def act(self, headers_GW, link):
        self.left -= 1
        if self.left == 0:
            self.announcer.call_off()
        return False


@pytest.mark.parametrize("at", [1, 2])
def test_what_is_called_off_in_the_middle_of_its_round_is_called_for_all_the_same(at):
    ranks = Announced(2)
    ranks.hearts = [
        Heartbeat(link, [CallsOff(announcer, at), announcer], interval_seconds=1)
        for link, announcer in zip(ranks.links, ranks.announcers, strict=True)
    ]
    ranks.announcers[0].announce(b"plan")
    ranks.beat(2)
    ranks.announcers[0].announce(b"another")
    ranks.beat(3)
    assert (ranks.heard, ranks.refused) == ([[b"another"]] * 2, [[], []])


def test_a_plan_that_cannot_be_read_is_a_failure_and_no_hang():
    def refuse(data):
        raise ValueError("no plan")

    links = memory_links(2)
    heard = [[] for _ in links]
    announcers = [Announcer(digest, refuse if link.rank == 0 else print, print) for link in links]
    announcers[0].announce(b"plan")
    hearts = [
        Heartbeat(
            link, [announcer], interval_seconds=1, on_failure=lambda name, error, box=box: box.append(error)
        )
        for link, announcer, box in zip(links, announcers, heard, strict=True)
    ]
    for _ in range(3):
        assert beat_all(hearts) == [True, True]
    assert [type(error) for (error,) in heard] == [ValueError, PeerFailedError]
    assert links[0].calls == links[1].calls


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


def test_a_group_without_cpu_memory_is_refused_with_the_remedy():
    group = dist.ProcessGroup(dist.HashStore(), 0, 1)  # as one of NCCL alone: nothing of it serves a CPU
    with pytest.raises(ValueError, match=r"carries no tensors.*new_group\(backend='gloo'\)"):
        GroupLink(group)
