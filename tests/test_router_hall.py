"""How a balancer routes by `Config.split` and ``dispatch``, over several ranks; and what it says of it."""

import threading

import numpy as np
import pytest
import torch
import torch.distributed as dist

from buffers import held_buffers
from isotherm import Balancer, Config, MoEShape, Topology
from isotherm.control import GroupLink
from isotherm.hall.explain import step_imbalance
from isotherm.hall.tables import TableRule
from isotherm.mover import Ledger
from isotherm.placement import Placement, expert_sums, rank_loads
from isotherm.status import Served
from isotherm.window import HeatWindow, overall_imbalance
from memory_link import memory_links
from ranks import run_ranks

LAYERS, EXPERTS, TOKENS, WINDOW = 2, 16, 60, 8
SHAPE = MoEShape(LAYERS, EXPERTS, 2)


def topology_of(ranks):
    return Topology.for_model(experts=EXPERTS, redundant=2 * ranks, ranks=ranks, nodes=2)


def traffic(rank, step, layer):
    """Hot experts that each rank wants alike."""
    rng = np.random.default_rng([rank, step, layer])
    hot_E = np.exp(np.random.default_rng(layer).normal(0, 0.8, EXPERTS))
    return torch.from_numpy(np.argsort(rng.exponential(1 / hot_E, (TOKENS, EXPERTS)), axis=1)[:, :2].copy())


def serve(link, split, mode, steps, dispatch="sender"):
    """What one rank sent, [steps, layers, expert or slot, pairs]; windows; statistics; placement."""
    topology = topology_of(link.size)
    config = Config(mode=mode, split=split, window_steps=WINDOW, confidence=0.0)
    balancer = Balancer(
        SHAPE, topology, group=link, weights=None, config=config, dispatch=dispatch, inline=True
    )
    windows, said, sent = [], [], []
    balancer.on_window(windows.append)
    for step in range(steps):
        with balancer.step(TOKENS):
            for layer in range(LAYERS):
                if dispatch == "replicated":
                    ids = torch.cat([traffic(rank, step, layer) for rank in range(link.size)])
                    slots = balancer.route(layer, ids, first_token=link.rank * TOKENS)
                else:
                    ids = traffic(link.rank, step, layer)
                    slots = balancer.route(layer, ids)
                sent.append(torch.stack([ids, slots]).numpy())
        said.append(balancer.statistics())
    balancer.close()
    pairs = np.array(sent).reshape(steps, LAYERS, 2, -1)
    return pairs, windows, said, balancer.placement.slot_to_expert


def on_ranks(ranks, *arguments, run=serve):
    """``run`` on threads of this process, which are the ranks."""
    found = [None] * ranks

    def work(link):
        found[link.rank] = run(link, *arguments)

    threads = [threading.Thread(target=work, args=(link,)) for link in memory_links(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def assert_served(found):
    """Every pair goes to a slot that holds its expert."""
    for pairs, _, _, content_LP in found:
        for layer in range(LAYERS):
            assert (content_LP[layer][pairs[:, layer, 1]] == pairs[:, layer, 0]).all()


def peaks(found, topology, steps):
    """The hottest rank of each step and layer, summed over the ``steps``."""
    total = 0
    for step in steps:
        for layer in range(LAYERS):
            to = np.concatenate([pairs[step, layer, 1] for pairs, *_ in found]) // topology.slots_per_rank
            total += np.bincount(to, minlength=topology.ranks).max()
    return total


@pytest.fixture(scope="module")
def by_shares():
    return on_ranks(4, "shares", "shares", 40)


def test_near_replicas_come_first_at_the_same_balance(by_shares):
    topology = topology_of(4)
    near = on_ranks(4, "near", "shares", 40)
    assert_served(near)
    assert near[0][2][-1].epoch > 0
    stays = [
        sum(
            (pairs[20:, :, 1] // topology.slots_per_rank == rank).sum()
            for rank, (pairs, *_) in enumerate(found)
        )
        for found in (by_shares, near)
    ]
    assert stays[1] > 1.1 * stays[0]
    plain, ours = (peaks(found, topology, range(20, 40)) for found in (by_shares, near))
    assert ours < 1.03 * plain


def test_levelled_batches_are_more_even_step_by_step(by_shares):
    topology = topology_of(4)
    level = on_ranks(4, "batch", "shares", 40)
    assert_served(level)
    mean = 20 * LAYERS * 2 * TOKENS
    plain, ours = (peaks(found, topology, range(20, 40)) for found in (by_shares, level))
    assert ours - mean < 0.7 * (plain - mean)
    for pairs, windows, *_ in level:
        assert sum(window.heat_LE.sum() for window in windows) == 4 * pairs[:, :, 0].size


def on_gloo(rank, *arguments):
    return serve(GroupLink(dist.new_group(backend="gloo")), *arguments)


def test_processes_serve_as_threads_do(tmp_path):
    """Each with tables of its own; whose tokens are where is gathered."""
    found = run_ranks(on_gloo, 2, tmp_path, "near", "shares", 24)
    again = on_ranks(2, "near", "shares", 24)
    assert_served(found)
    assert found[0][1][-1].source_heat_NLE is not None
    for (pairs, *_), (others, *_) in zip(found, again):
        assert np.array_equal(pairs, others)


@pytest.mark.parametrize("split", ["shares", "batch"])
def test_replicated_ranks_choose_alike_and_windows_count_each_pair_once(split):
    found = on_ranks(2, split, "observe", 16, "replicated")
    assert_served(found)
    assert found[0][0].shape[-1] == 2 * 2 * TOKENS
    for pairs, windows, *_ in found:
        assert np.array_equal(pairs, found[0][0])
        counted_LE = sum(window.heat_LE for window in windows)
        named_LX = np.moveaxis(pairs[: windows[-1].end_step, :, 0], 1, 0).reshape(LAYERS, -1)
        assert (counted_LE == [np.bincount(row, minlength=EXPERTS) for row in named_LX]).all()


def test_near_replicas_and_replicated_dispatch_do_not_go_together():
    with pytest.raises(ValueError, match="split='near' gives each rank tables of its own"):
        TableRule(SHAPE, topology_of(4), "near", "replicated", 0)
    with pytest.raises(ValueError, match="split='far' is unknown: choose one of shares, near, batch"):
        Config(split="far")


def hold(link, split):
    """Bytes that a balancer holds, and what was told of them."""
    topology = Topology(ranks=2, slots_per_rank=10, nodes=2)
    config = Config(split=split)
    balancer = Balancer(SHAPE, topology, group=link, weights=None, config=config, inline=True)
    loop, rooms = balancer._loop, [balancer._collector, balancer._router, balancer._heartbeat]
    others = [balancer, loop, loop.mover, loop.announcer, loop.mover.ledger, link]
    found = held_buffers(rooms, leave_out=others)
    balancer.close()
    return found, Balancer.memory(SHAPE, topology, split=split)


@pytest.mark.parametrize("split", ["shares", "near", "batch"])
def test_memory_is_told_to_the_byte(split):
    for (tensors, arrays), told in on_ranks(2, split, run=hold):
        assert tensors == told.device_bytes + told.pinned_bytes
        assert arrays == told.host_bytes


def window_of(heat_LE, source_NLE=None):
    return HeatWindow(
        heat_LE[None, None], None, (0, 4), np.ones(1, int), tuple(range(LAYERS)), source_heat_NLE=source_NLE
    )


def start_ledger(topology):
    placement = Placement.default(SHAPE, topology)
    return Ledger.start(placement, placement.even_shares())


def test_near_tables_of_all_ranks_add_up_by_where_tokens_come_from():
    topology = topology_of(4)
    ledger = start_ledger(topology)
    source_NLE = np.random.default_rng(0).integers(1, 9, (2, LAYERS, EXPERTS))
    window = window_of(source_NLE.sum(axis=0), source_NLE)
    sent_LP = np.zeros((LAYERS, topology.slots))
    for rank in range(4):
        tables = TableRule(SHAPE, topology, "near", "sender", rank).tables(ledger, window)
        part_LE = source_NLE[rank // 2] / source_NLE.sum(axis=0) / 2
        for layer in range(LAYERS):
            for expert in range(EXPERTS):
                rows = slice(*tables.offsets[layer, expert : expert + 2])
                split = np.diff(tables.ends[layer, rows], prepend=0) / 2**32
                np.add.at(sent_LP[layer], tables.slots[layer, rows], part_LE[layer, expert] * split)
    assert sent_LP == pytest.approx(np.array(ledger.shares), abs=1e-6)
    assert expert_sums(ledger.placement, sent_LP) == pytest.approx(1)


def test_others_are_as_level_as_shares_make_the_newest_heat():
    topology = topology_of(4)
    ledger, ranks = start_ledger(topology), 4
    rule = TableRule(SHAPE, topology, "batch", "sender", 1)
    assert rule.tables(ledger).others / 2**20 == pytest.approx(np.full((LAYERS, ranks), 3 / 4), abs=1e-5)
    heat_LE = np.random.default_rng(1).integers(1, 100, (LAYERS, EXPERTS))
    heat_LE[1] = 0
    others_LG = rule.tables(ledger, window_of(heat_LE)).others / 2**20
    assert others_LG.sum(axis=1) == pytest.approx(3, abs=1e-5)
    even_LG = rank_loads(heat_LE, ledger.placement, np.array(ledger.shares), topology)
    assert overall_imbalance(others_LG[:1]) < overall_imbalance(even_LG[:1]) - 0.01
    assert others_LG[1] == pytest.approx(3 / 4, abs=1e-5)
    replicated = TableRule(SHAPE, topology, "batch", "replicated", 1)
    assert not replicated.tables(ledger, window_of(heat_LE)).others.any()


def test_statistics_explain_what_a_window_carried(by_shares):
    _, windows, said, content_LP = by_shares[0]
    first, last = said[WINDOW - 1].served, said[-1].served
    assert first.planned is None
    assert first.drift is None
    placement = Placement(content_LP, EXPERTS)
    even_LG = rank_loads(windows[0].heat_LE, placement, placement.even_shares(), topology_of(4))
    assert first.predicted == pytest.approx(overall_imbalance(even_LG))
    assert first.achieved == said[WINDOW - 1].imbalance == overall_imbalance(windows[0].load_LG)
    assert last.planned < first.predicted - 0.02  # new shares
    assert last.predicted == pytest.approx(last.planned + last.drift)
    assert last.achieved == pytest.approx(last.predicted + last.dispatch)
    assert abs(last.dispatch) < 0.02
    assert last.noise > 0.02


def test_an_explanation_in_words():
    assert str(Served(1.01, 1.04, 1.05, 1.12)) == (
        "planned 1.010, drift +0.030: predicted 1.040, dispatch +0.010: achieved 1.050; in a single step, "
        "noise +0.070: 1.120"
    )
    assert str(Served(None, 1.04, 1.05, 1.12)).startswith("predicted 1.040")


def test_a_single_step_is_as_uneven_as_chance_makes_it():
    """Against steps drawn one by one."""
    rng = np.random.default_rng(2)
    load_LG = np.array([[9000, 10000, 10000, 11000], [5000, 5000, 5000, 5000]])
    drawn = [overall_imbalance(rng.poisson(load_LG / 100)) for _ in range(400)]
    assert step_imbalance(load_LG, 100) == pytest.approx(np.mean(drawn), abs=0.02)
    assert step_imbalance(load_LG, 1) == pytest.approx(overall_imbalance(load_LG), abs=0.02)
    assert step_imbalance(np.zeros((2, 4), int), 100) == 1.0
