"""Rounds that are the same on every rank, whatever the ranks do and whenever."""

import os
import threading
import time

import numpy as np
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from isotherm.control import GroupLink, Heartbeat
from isotherm.errors import LinkError
from memory_link import memory_links
from random_rounds import Failure, Script, check_outcomes, run_script
from ranks import run_ranks

RANKS = 3

failures = st.builds(
    Failure,
    rank=st.integers(0, RANKS - 1),
    number=st.integers(0, 1),
    at=st.integers(0, 12),
    where=st.sampled_from(["header", "act"]),
)
scripts = st.builds(
    Script,
    seed=st.integers(0, 2**31),
    rounds=st.tuples(*[st.integers(1, 12)] * RANKS),
    failures=st.lists(failures, max_size=2).map(tuple),
)


def run_in_memory(script, links):
    outcomes = [None] * len(links)

    def run(link):
        outcomes[link.rank] = run_script(script, link)

    threads = [threading.Thread(target=run, args=(link,)) for link in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return outcomes


@settings(max_examples=60, deadline=None)
@given(scripts)
def test_calls_are_the_same_on_every_rank_in_memory(script):
    links = memory_links(RANKS)
    outcomes = run_in_memory(script, links)
    check_outcomes(script, [link.calls for link in links], outcomes)


class LooksAtItself:
    """Calls by its own state instead of by what was gathered."""

    header_words = 1

    def header(self):
        return (0,)

    def act(self, headers_GW, link):
        if link.rank == 1:
            link.all_reduce(np.zeros(1, np.int32))
        return False


def test_a_participant_that_looks_at_its_own_state_is_caught():
    links = memory_links(2)
    heard = [[] for _ in links]
    hearts = [
        Heartbeat(link, [LooksAtItself()], interval_seconds=0.001, on_lost=box.append)
        for link, box in zip(links, heard, strict=True)
    ]
    for heart in hearts:
        heart.start()
    for heart in hearts:
        assert heart.close(10)
    assert all(isinstance(error, LinkError) for (error,) in heard)
    assert links[0].calls != links[1].calls


class RecordingLink(GroupLink):
    """Lists (kind, size) of each call, as the link in memory does."""

    def __init__(self, group):
        super().__init__(group)
        self.calls = []

    def all_gather(self, words_W, out=None):
        self.calls.append(("all_gather", words_W.dtype.name, len(words_W)))
        return super().all_gather(words_W, out)

    def all_reduce(self, array):
        self.calls.append(("all_reduce", array.dtype.name, array.size))
        super().all_reduce(array)

    def broadcast(self, data, size, source):
        self.calls.append(("broadcast", source, size))
        return super().broadcast(data, size, source)

    def exchange(self, sends, receives):
        self.calls.append(("exchange",))
        super().exchange(sends, receives)


def run_on_group(rank, chosen):
    results = []
    for script in chosen:
        link = RecordingLink(dist.new_group(backend="gloo"))
        results.append((run_script(script, link), link.calls, link.sent_bytes))
    return results


def sent_by(rank, calls):
    """Bytes that ``rank`` hands to ``calls``, transfers left out."""
    return sum(
        size * np.dtype(what).itemsize if kind != "broadcast" else size * (what == rank)
        for kind, what, size in (call for call in calls if len(call) == 3)
    )


def test_calls_are_the_same_on_every_rank_over_gloo(tmp_path):
    rng = np.random.default_rng(5)
    chosen = [
        Script(seed, tuple(rng.integers(5, 40, RANKS).tolist()), happens, pause_seconds=0.01)
        for seed, happens in enumerate(
            [
                (),
                (Failure(1, 0, 4, "act"),),
                (Failure(2, 1, 3, "header"),),
                (Failure(0, 1, 2, "act"), Failure(2, 0, 2, "act")),
            ]
        )
    ]
    results = run_ranks(run_on_group, RANKS, tmp_path, chosen)
    for index, script in enumerate(chosen):
        outcomes, calls, sent = zip(*(result[index] for result in results), strict=True)
        check_outcomes(script, calls, outcomes)
        kinds = {call[0] for call in calls[0]}
        assert script.failures or kinds == {"all_gather", "all_reduce", "broadcast", "exchange"}
        for rank in range(RANKS):
            assert sent[rank] >= sent_by(rank, calls[rank])
            assert ("exchange",) in calls[rank] or sent[rank] == sent_by(rank, calls[rank])


def lose_a_rank(rank):
    """Rank 2 dies without a word; what the others are told, and how long closing takes them."""
    heard = []
    heart = Heartbeat(
        GroupLink(dist.new_group(backend="gloo")), [], interval_seconds=0.005, on_lost=heard.append
    )
    heart.start()
    while heart.rounds < 5:
        time.sleep(0.001)
    if rank == 2:
        os._exit(0)
    heart._thread.join(20)
    closed = heart.close(5)
    return [(type(error), str(error)) for error in heard], closed


def test_a_rank_that_dies_ends_the_heartbeat_of_the_others(tmp_path):
    *survivors, dead = run_ranks(lose_a_rank, 3, tmp_path)
    assert dead is None
    for rank, (heard, closed) in enumerate(survivors):
        assert closed
        ((kind, text),) = heard
        assert kind is LinkError
        assert f"all_gather of rank {rank} failed" in text
