"""HeatCollector alone, in real processes over gloo, against a plain count."""

import threading
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist

from heat_ranks import beat_all, in_threads, make_ranks
from isotherm import HeatCollector, MoEShape, PeerMismatchError, Placement, Topology
from isotherm.streams import forward_waits
from isotherm.streams.host import HostBackend
from memory_link import memory_links
from ranks import run_ranks

SHAPE = MoEShape(3, 8, 2, layer_ids=(1, 2, 5))
STEPS = 24


def make_topology(ranks):
    return Topology(ranks=ranks, slots_per_rank=-(-(8 + ranks) // ranks))


def wait_for_gather(collector):
    """Holds the engine back until its snapshot is gathered, so that windows do not depend on time."""
    while collector.step % 4 == 0 and collector.gathered_step < collector.step:
        time.sleep(0.001)


def collect_ids(rank, ranks, inline, on_device):
    """Each rank counts its own ids; padding and dummy steps between them."""
    group = dist.new_group(backend="gloo")
    collector = HeatCollector(
        SHAPE,
        make_topology(ranks),
        group,
        window_steps=8,
        inline=inline,
        device_group=dist.new_group(backend="gloo") if on_device else None,
        heartbeat_seconds=0.002,
    )
    rng = np.random.default_rng(rank)
    heat = np.zeros((STEPS, 2, 3, 8), np.int64)
    windows = []
    for step in range(STEPS):
        tokens = 0 if step % 5 == rank else int(rng.integers(1, 30))
        decode = int(rng.integers(tokens + 1))
        for layer in range(3):
            ids = rng.integers(-1, 8, (tokens + 4, 2))
            for kind, rows in enumerate((ids[decode:tokens], ids[:decode])):
                np.add.at(heat[step, kind, layer], rows[rows >= 0], 1)
            collector.count_ids(layer, torch.from_numpy(ids), num_tokens=tokens, num_decode=decode)
        collector.end_step(num_tokens=tokens, num_decode=decode)
        wait_for_gather(collector)
    while (window := collector.poll()) is not None:
        windows.append(window)
    collector.close()
    return heat, windows, forward_waits()


@pytest.mark.parametrize(
    ("ranks", "inline", "on_device"),
    [(2, False, False), (3, True, False), (4, False, False), (3, False, True), (2, True, True)],
)
def test_ids_are_counted_exactly_and_alike_on_every_rank(tmp_path, ranks, inline, on_device):
    results = run_ranks(collect_ids, ranks, tmp_path, ranks, inline, on_device)
    heat = sum(result[0] for result in results)
    for _, windows, waits in results:
        assert waits == (STEPS if inline else 0)
        for window in windows:
            span = slice(window.start_step, window.end_step)
            assert (window.heat_KSLE.sum(1) == heat[span].sum(0)).all()
            assert window.layer_ids == (1, 2, 5)
        assert [window.slice_steps for window in windows] == [
            (first, first + 4, first + 8) for first in range(0, STEPS, 8)
        ]


def collect_received(rank, borrowed, cumulative, on_device, inline):
    """Each rank counts what its slots received; the engine then overwrites what it lent."""
    group = dist.new_group(backend="gloo")
    topology = make_topology(2)
    collector = HeatCollector(
        SHAPE,
        topology,
        group,
        source="received",
        window_steps=8,
        inline=inline,
        device_group=dist.new_group(backend="gloo") if on_device else None,
        heartbeat_seconds=0.002,
    )
    rng = np.random.default_rng(rank)
    slots = np.zeros((3, topology.slots_per_rank), np.int64)
    for _ in range(8):
        for layer in range(3):
            counts = rng.integers(0, 50, topology.slots_per_rank)
            slots[layer] += counts
            given = torch.from_numpy(counts.cumsum() if cumulative else counts.copy())
            collector.count(layer, given, cumulative=cumulative, borrowed=borrowed)
            if borrowed:
                given.fill_(10**6)
        collector.end_step(num_tokens=5)
        wait_for_gather(collector)
    window = collector.poll()
    assert collector.poll() is None
    collector.close()
    return slots, window


@pytest.mark.parametrize(
    ("borrowed", "cumulative", "on_device", "inline"),
    [
        (True, False, False, False),
        (False, True, False, False),
        (False, False, True, False),
        (True, True, False, True),
        (False, True, True, True),
    ],
)
def test_received_counts_are_folded_to_the_experts_of_their_slots(
    tmp_path, borrowed, cumulative, on_device, inline
):
    results = run_ranks(collect_received, 2, tmp_path, borrowed, cumulative, on_device, inline)
    slots_LGS = np.stack([slots for slots, _ in results], axis=1)
    heat_LE = np.zeros((3, 8), np.int64)
    flat_LP = slots_LGS.reshape(3, -1)
    for slot in range(flat_LP.shape[1]):
        heat_LE[:, slot % 8] += flat_LP[:, slot]
    for _, window in results:
        assert (window.slot_load_LGS == slots_LGS).all()
        assert (window.heat_LE == heat_LE).all()
        assert window.tokens_K.tolist() == [80, 0]


@pytest.mark.parametrize("source", ["ids", "received"])
def test_inline_gives_the_same_windows_bit_for_bit(source):
    """The same traffic, with a side stream and without: the same bytes of the same windows."""

    def windows_of(inline):
        (link,) = memory_links(1)
        topology = Topology(ranks=1, slots_per_rank=9)
        collector = HeatCollector(
            SHAPE, topology, link, source=source, window_steps=4, inline=inline, heartbeat_seconds=0.001
        )
        rng = np.random.default_rng(3)
        for _ in range(24):
            for layer in range(3):
                if source == "ids":
                    collector.count_ids(layer, torch.from_numpy(rng.integers(-1, 8, (9, 2))), num_decode=2)
                else:
                    counts = torch.from_numpy(rng.integers(0, 9, 9))
                    collector.count(layer, counts, borrowed=False, kind="decode")
            collector.end_step(num_tokens=9, num_decode=2)
            while collector.step % 2 == 0 and collector.gathered_step < collector.step:
                time.sleep(0.0005)
        found = []
        while (window := collector.poll()) is not None:
            found.append(window)
        collector.close()
        return found

    aside, inline = windows_of(False), windows_of(True)
    assert len(aside) == len(inline) == 6
    for ours, theirs in zip(aside, inline, strict=True):
        assert ours.slice_steps == theirs.slice_steps
        assert ours.heat_KSLE.tobytes() == theirs.heat_KSLE.tobytes()
        assert ours.tokens_K.tobytes() == theirs.tokens_K.tobytes()
        if source == "received":
            assert ours.slot_load_LGS.tobytes() == theirs.slot_load_LGS.tobytes()


@pytest.mark.parametrize("inline", [False, True])
def test_on_window_is_called_off_the_forward_thread_unless_in_line(inline):
    (link,) = memory_links(1)
    collector = HeatCollector(
        SHAPE,
        Topology(ranks=1, slots_per_rank=8),
        link,
        window_steps=2,
        inline=inline,
        heartbeat_seconds=0.001,
    )
    threads = []
    collector.on_window(lambda window: threads.append(threading.current_thread()))
    for _ in range(4):
        collector.end_step(num_tokens=0)
        while collector.gathered_step < collector.step:
            time.sleep(0.0005)
    collector.close()
    assert collector.poll() is None
    names = {thread.name for thread in threads}
    assert names == ({threading.main_thread().name} if inline else {"isotherm-heartbeat"})


def test_a_window_is_one_line_of_the_log(caplog):
    caplog.set_level("DEBUG", logger="isotherm")
    (rank,) = make_ranks(1, source="ids", window_steps=1)
    for _ in range(3):
        rank.end_step(7)
        beat_all([rank])
    lines = [record.message for record in caplog.records if record.levelname == "DEBUG"]
    assert lines == [
        f"isotherm: window of steps {step} to {step + 1}, heat (2, 1, 2, 4), 7 tokens" for step in range(3)
    ]
    rank.close()


class CountingBackend(HostBackend):
    """Notes every side stream that is made, and what is submitted to it."""

    queues_work = True

    def __init__(self):
        super().__init__()
        self.made = []

    def side_stream(self, name):
        stream = super().side_stream(name)
        submit, self.made = stream.submit, [*self.made, (name, [])]
        notes = self.made[-1][1]

        class Noting:
            def submit(self, work, **accesses):
                notes.append(work.__qualname__)
                submit(work, **accesses)

            def __getattr__(self, attribute):
                return getattr(stream, attribute)

        return Noting()


def test_counting_and_gathering_share_the_one_side_stream():
    backend = CountingBackend()
    ranks = make_ranks(2, source="received", on_device=True, backend=backend)
    assert [name for name, _ in backend.made] == ["heat", "heat"]  # one for each of the two collectors
    for rank in ranks:
        rank.collector.count(0, torch.ones(4, dtype=torch.int64), borrowed=False)
    in_threads([rank.end_step for rank in ranks])
    beat_all(ranks)
    for _, notes in backend.made:
        text = " ".join(notes)
        for what in ("hand_over", "fold", "DeviceGather.submit", "land"):
            assert what in text, f"{what} did not run on the side stream: {notes}"
    for rank in ranks:
        rank.close()


def build_differently(rank):
    group = dist.new_group(backend="gloo")
    try:
        HeatCollector(SHAPE, make_topology(2), group, window_steps=8 if rank else 16)
    except PeerMismatchError as error:
        return str(error)
    return None


def test_a_rank_with_another_window_is_named(tmp_path):
    for message in run_ranks(build_differently, 2, tmp_path):
        assert "rank 1 was started with window_steps=8, rank 0 with window_steps=16" in message


class QueueingBackend(HostBackend):
    """Snapshots pass a side stream, as beside a device."""

    queues_work = True


@pytest.mark.parametrize("source", ["ids", "received"])
def test_an_engine_goes_on_after_the_collector_is_closed(source):
    collector = HeatCollector(
        SHAPE,
        make_topology(1),
        memory_links(1)[0],
        source=source,
        window_steps=2,
        backend=QueueingBackend(),
    )

    def step():
        if source == "ids":
            collector.count_ids(0, torch.zeros((4, 2), dtype=torch.int64))
        else:
            collector.count(0, torch.ones(9, dtype=torch.int64), borrowed=False)
        collector.end_step(num_tokens=4)

    step()
    collector.close()
    for _ in range(4):
        step()
    collector.load_placement(Placement.default(SHAPE, make_topology(1)))
    collector.close()
    assert collector.step == 5
    if source == "received":
        assert not collector._received._handed


def test_windows_that_nobody_takes_are_not_kept_for_ever(caplog):
    (rank,) = make_ranks(1)
    collector = rank.collector
    collector._callbacks = type(collector._callbacks)("on_window")  # nobody has asked for windows
    for _ in range(2 * 300):
        rank.end_step()
        rank.heartbeat.beat()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "wait for poll()" in caplog.text
    starts = []
    while (window := collector.poll()) is not None:
        starts.append(window.start_step)
    assert starts == list(range(2 * 44, 2 * 300, 2))
    rank.close()
