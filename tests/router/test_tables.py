"""Tables: how they are built, staged on one thread, and put in force on another without waiting."""

import numpy as np
import pytest
import torch
from routed import Counted, random_ids, random_tables

from isotherm.placement import EMPTY
from isotherm.router import Router, RoutingTables, TableShelf
from isotherm.router.tables import ONE
from isotherm.streams.host import HostBackend
from isotherm.topology import MoEShape, Topology


class LaggingBackend(HostBackend):
    """Main is a queue that runs when told: what a device's stream is to its host."""

    def __init__(self):
        super().__init__()
        self.lag = LaggingStream()

    def main_stream(self):
        return self.lag


class LaggingStream:
    def __init__(self):
        self.queue = []

    def submit(self, work, *, reads=(), writes=()):
        self.queue.append(work)

    def record_event(self):
        event = LaggingEvent()
        self.queue.append(event.reach)
        return event

    def run(self):
        queue, self.queue = self.queue, []
        for work in queue:
            work()


class LaggingEvent:
    done = False

    def reach(self):
        self.done = True

    def query(self):
        return self.done

    def synchronize(self):
        raise AssertionError("nobody may wait for the engine's stream")


def test_tables_are_loaded_in_place():
    rng = np.random.default_rng(6)
    _, _, tables = random_tables(rng, 8, 16)
    _, _, others = random_tables(rng, 8, 16)
    counted = Counted(tables)
    address = counted.router._block.data_ptr()
    ids = random_ids(rng, 64, 8, 2)
    before = counted.route(ids)
    counted.router.load(counted.router.try_stage(others))
    assert not torch.equal(counted.route(ids), before)
    assert torch.equal(counted.route(ids), Counted(others).route(ids))
    assert counted.router._block.data_ptr() == address


def test_a_buffer_is_filled_again_only_when_the_stream_has_read_it():
    rng = np.random.default_rng(6)
    several = [random_tables(rng, 8, 16)[2] for _ in range(4)]
    backend = LaggingBackend()
    counted = Counted(several[0], backend=backend)
    router, ids = counted.router, random_ids(rng, 64, 8, 2)
    answers = [Counted(tables).route(ids) for tables in several]
    first, second = router.try_stage(several[1]), router.try_stage(several[2])
    assert router.try_stage(several[3]) is None  # both are still to be loaded
    router.load(first)
    router.load(second)
    assert router.try_stage(several[3]) is None  # both are still to be read
    assert torch.equal(counted.route(ids), answers[0])
    backend.lag.run()
    assert torch.equal(counted.route(ids), answers[2])
    third = router.try_stage(several[3])
    assert third.block.data_ptr() == first.block.data_ptr()
    router.load(third)
    backend.lag.run()
    assert torch.equal(counted.route(ids), answers[3])


def test_tables_that_do_not_fit_are_refused_and_cost_no_buffer():
    rng = np.random.default_rng(6)
    _, _, tables = random_tables(rng, 8, 16)
    _, _, others = random_tables(rng, 8, 17)
    router = Counted(tables).router
    for _ in range(3):
        with pytest.raises(ValueError, match=r"17 slots and 0 ranks to level .* 2, 8, 16 and 0"):
            router.try_stage(others)
    assert router.try_stage(tables) is not None


def test_the_shelf_keeps_the_newest_tables_until_a_buffer_comes_back():
    rng = np.random.default_rng(8)
    several = [random_tables(rng, 8, 16)[2] for _ in range(6)]
    backend = LaggingBackend()
    counted = Counted(several[0], backend=backend)
    shelf, ids = TableShelf(counted.router, backend), random_ids(rng, 64, 8, 2)
    assert shelf.load_newest() is None
    for epoch in range(1, 6):
        shelf.leave(epoch, several[epoch])
    assert shelf.load_newest() == 2  # two buffers
    shelf.retry()
    assert shelf.load_newest() is None
    backend.lag.run()
    shelf.retry()
    assert shelf.load_newest() == 5  # 3 and 4 were overtaken
    backend.lag.run()
    assert torch.equal(counted.route(ids), Counted(several[5]).route(ids))


def test_memory_is_right_to_the_byte():
    """What a router holds, found by walking it, is what was told before it was made."""
    shape, topology = MoEShape(2, 8, 2), Topology(ranks=4, slots_per_rank=4)
    _, _, tables = random_tables(np.random.default_rng(6), 8, 16)
    for micro_batches in (1, 3):
        counted = Counted(tables, micro_batches=micro_batches)
        told = Router.memory(shape, topology, micro_batches)
        assert sum(storage_bytes(counted.router, counted.words)) == (
            told.device_bytes + told.pinned_bytes + told.host_bytes
        )
    assert Router.memory(shape, topology, device="meta").host_bytes == 0


def storage_bytes(root, excepted):
    """The bytes of every storage that ``root`` reaches, each once."""
    seen, sizes, queue = {excepted.untyped_storage().data_ptr()}, [], [root]
    visited = set()
    while queue:
        item = queue.pop()
        if id(item) in visited:
            continue
        visited.add(id(item))
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                sizes.append(storage.nbytes())
        elif isinstance(item, np.ndarray):
            base = item
            while isinstance(base.base, np.ndarray):
                base = base.base
            if isinstance(base.base, torch.Tensor):
                queue.append(base.base)
            elif base.ctypes.data not in seen:
                seen.add(base.ctypes.data)
                sizes.append(base.nbytes)
        elif isinstance(item, dict):
            queue.extend(item.values())
        elif isinstance(item, (list, tuple)) or type(item).__name__ == "deque":
            queue.extend(item)
        elif type(item).__module__.startswith("isotherm"):
            queue.extend(getattr(item, "__dict__", {}).values())
            queue.extend(getattr(item, name) for name in getattr(type(item), "__slots__", ()))
    return sizes


def test_rows_end_at_one_whatever_was_rounded():
    content = np.array([[0, 0, 0, 1, EMPTY, 1]], np.int32)
    shares = np.array([[1 / 3, 1 / 3, 1 / 3, 1.0, 0.0, 0.0]])
    tables = RoutingTables.build(content, shares, 2)
    assert tables.offsets.tolist() == [[0, 3, 5]]
    assert tables.slots[0, :5].tolist() == [0, 1, 2, 3, 5]
    assert tables.ends[0, 2] == ONE
    assert tables.ends[0, 3:5].tolist() == [ONE, ONE]


def test_an_expert_that_nobody_serves_is_refused():
    with pytest.raises(ValueError, match="layer 0: expert 1 has no replica with a share"):
        RoutingTables.build(np.array([[0, 1]], np.int32), np.array([[1.0, 0.0]]), 2)
