"""The whole balancer in real processes over gloo, against its synchronous twin."""

import time

import numpy as np
import pytest
import torch
import torch.distributed as dist

from isotherm import Balancer, Config, MoEShape, PeerMismatchError, Placement, State, Topology
from isotherm.control import Limits
from memory_link import memory_links
from ranks import run_ranks

SHAPE = MoEShape(3, 16, 2, layer_ids=(1, 2, 4))
WINDOW = 8


def make_topology(ranks):
    return Topology.for_model(experts=16, redundant=-16 % ranks + 2 * ranks, ranks=ranks)


def make_weights(topology, rank):
    """Weights that name layer and expert, in two tensors of two dtypes."""
    first = rank * topology.slots_per_rank
    local = np.arange(first, first + topology.slots_per_rank) % SHAPE.experts
    return [
        {
            "up": torch.tensor(local + 100 * layer, dtype=torch.float32)
            .repeat(3, 2, 1)
            .permute(2, 0, 1)
            .contiguous(),
            "scale": [torch.tensor([expert + layer], dtype=torch.bfloat16) for expert in local],
        }
        for layer in range(SHAPE.layers)
    ]


def holds(weights, layer, slot, expert):
    return bool((weights[layer]["up"][slot] == expert + 100 * layer).all()) and bool(
        (weights[layer]["scale"][slot] == torch.tensor(expert + layer).bfloat16()).all()
    )


def traffic(rank, step, layer, shift):
    """Two hot experts, which are others after the shift; each rank draws its own tokens."""
    rng = np.random.default_rng([rank, step, layer])
    hot = (np.array([0, 3]) + (5 if step >= shift else 0) + layer) % 16
    weights = np.ones(16)
    weights[hot] = 12
    return torch.from_numpy(np.argsort(rng.random((40, 16)) / weights, axis=1)[:, :2].copy())


def balance(rank, ranks, inline, mode, steps):
    """Runs traffic; checks on every pair that the slot it is sent to holds its expert, by weights."""
    group, world = dist.new_group(backend="gloo"), dist.group.WORLD
    topology = make_topology(ranks)
    weights = make_weights(topology, rank)
    config = Config(mode=mode, window_steps=WINDOW, moves_in_flight=4, heartbeat_seconds=0.002, min_gain=0.01)
    balancer = Balancer(SHAPE, topology, group=group, weights=weights, config=config, inline=inline)
    windows, decisions, wrong = [], [], 0
    balancer.on_window(windows.append)
    balancer.on_decision(decisions.append)
    heat = np.zeros((steps, 3, 16), np.int64)
    for step in range(steps):
        with balancer.step(40):
            for layer in range(3):
                ids = traffic(rank, step, layer, steps // 2)
                np.add.at(heat[step, layer], ids.numpy().ravel(), 1)
                slots = balancer.route(layer, ids)
                wrong += misrouted(ids, slots, layer, weights, topology, rank, world)
        # Hold the engine back until its snapshot is gathered: windows then do not depend on time.
        while step % 4 == 3 and balancer.statistics().gathered_step <= step and mode != "off":
            time.sleep(0.001)
    statistics = balancer.statistics()
    # Every rank is past its last step; what was under way may end before closing.
    balancer.close()
    replicas = all(
        holds(weights, layer, slot, expert)
        for layer in range(3)
        for slot, expert in enumerate(
            balancer.placement.slot_to_expert[layer].reshape(ranks, -1)[rank].tolist()
        )
        if expert >= 0
    )
    return heat, windows, decisions, wrong, statistics, replicas, balancer.placement


def misrouted(ids, slots, layer, weights, topology, rank, world):
    """Pairs whose slot does not hold their expert at the moment of computing: a real all-to-all."""
    pairs = torch.stack([ids.reshape(-1), slots.reshape(-1)], dim=1)
    boxes = [pairs[pairs[:, 1] // topology.slots_per_rank == g] for g in range(topology.ranks)]
    gathered = [None] * topology.ranks
    dist.all_gather_object(gathered, boxes, group=world)
    received = torch.cat([box[rank] for box in gathered])
    wrong = 0
    for slot in range(topology.slots_per_rank):
        experts = received[received[:, 1] == rank * topology.slots_per_rank + slot, 0]
        wrong += sum(not holds(weights, layer, slot, int(expert)) for expert in experts.unique())
    return wrong


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_balanced_live_and_every_pair_reaches_its_expert(tmp_path, ranks):
    results = run_ranks(balance, ranks, tmp_path, ranks, False, "full", 120)
    heat = sum(result[0] for result in results)
    statistics = results[0][4]
    assert statistics.plans >= 2
    assert statistics.moves >= 2
    assert statistics.state in (State.OBSERVING, State.PLANNING, State.MOVING)
    for _, windows, _, wrong, stats, replicas, placement in results:
        assert wrong == 0
        assert replicas
        assert (stats.waits, stats.failures.total) == (0, 0)
        assert placement == results[0][6]
        assert [w.slice_steps for w in windows] == [w.slice_steps for w in results[0][1]]
        for window in windows:
            assert (window.heat_LE == heat[window.start_step : window.end_step].sum(0)).all()
            assert window.load_LG.sum() == window.heat_LE.sum()


def test_the_twin_in_line_makes_the_same_first_decision_and_says_that_it_waits(tmp_path):
    live_folder, twin_folder = tmp_path / "live", tmp_path / "twin"
    live_folder.mkdir()
    twin_folder.mkdir()
    live = run_ranks(balance, 2, live_folder, 2, False, "full", 60)
    twin = run_ranks(balance, 2, twin_folder, 2, True, "full", 60)
    for _, _, _, wrong, stats, replicas, _ in twin:
        assert wrong == 0
        assert replicas
        assert stats.waits == 60
    for ours, theirs in zip(live[0][1], twin[0][1], strict=True):
        assert ours.slice_steps == theirs.slice_steps
        assert (ours.heat_KSLE == theirs.heat_KSLE).all()
    first, expected = live[0][1][0], twin[0][1][0]
    assert (first.slot_load_LGS == expected.slot_load_LGS).all()
    assert live[0][2][0].plan.to_bytes() == twin[0][2][0].plan.to_bytes()


def test_shares_move_no_weight_and_observing_changes_nothing(tmp_path):
    for mode in ("shares", "observe"):
        folder = tmp_path / mode
        folder.mkdir()
        results = run_ranks(balance, 2, folder, 2, True, mode, 40)
        placement = Placement.default(SHAPE, make_topology(2))
        for _, _, _, wrong, stats, _, ended in results:
            assert wrong == 0
            assert stats.moves == 0
            assert stats.moved_bytes == 0
            assert ended == placement
            assert (stats.plans > 0) == (mode == "shares")
        assert results[0][2]
        assert not results[1][2]


def test_a_compiled_forward_pass_routes_and_counts_as_the_plain_one():
    """Two layers and two micro-batches in one compiled region; begin_step and end_step outside."""

    def serve(compiled):
        (link,) = memory_links(1)
        topology = make_topology(1)
        balancer = Balancer(SHAPE, topology, group=link, weights=None, micro_batches=2)
        state = torch.zeros(4, dtype=torch.int64)

        def forward(ids):
            if compiled:
                return [
                    balancer.route_captured(layer, ids[layer], state, micro_batch=layer) for layer in range(2)
                ]
            return [balancer.route(layer, ids[layer], micro_batch=layer) for layer in range(2)]

        torch._dynamo.reset()
        region = torch.compile(forward, fullgraph=True, backend="aot_eager") if compiled else forward
        rng = np.random.default_rng(7)
        slots = []
        for step, tokens in enumerate((20, 5, 0, 13)):
            ids = torch.from_numpy(rng.integers(-1, 16, (2, 20, 2)))
            with balancer.step(tokens, num_decode_tokens=tokens // 2):
                state.copy_(torch.tensor([step, 0, tokens, tokens // 2]))
                slots += region(ids)
        counted = balancer._collector.totals.rows_MW.clone()
        balancer.close()
        return slots, counted

    (slots, counted), (plain_slots, plain_counted) = serve(True), serve(False)
    assert all(map(torch.equal, slots, plain_slots))
    assert torch.equal(counted, plain_counted)
    assert counted.any()


def fail_at_building(rank):
    """What wrong arguments say, without leaving the other rank behind."""
    group = dist.new_group(backend="gloo")
    topology = make_topology(2)
    messages = []
    cases = [
        {"topology": Topology(ranks=2, slots_per_rank=7)},
        {"topology": Topology(ranks=4, slots_per_rank=5)},
        {"config": Config(policy="nonsense")},
        {"weights": make_weights(topology, rank)[:2]},
        {"placement": Placement(np.arange(16)[None], 16)},
        {"config": Config(window_steps=16 if rank else 8)},
        {"limits": Limits.of_window(16 if rank else 8)},
    ]
    for case in cases:
        arguments = {"topology": topology, "weights": None, **case}
        try:
            Balancer(SHAPE, arguments.pop("topology"), group=group, **arguments)
        except (ValueError, PeerMismatchError) as error:
            messages.append(str(error))
    return messages


def test_wrong_arguments_name_the_value_and_the_remedy(tmp_path):
    for messages in run_ranks(fail_at_building, 2, tmp_path):
        few, other_group, policy, weights, placement, peers, limits = messages
        assert "14 slots hold fewer than experts=16" in few
        assert "slots_per_rank=8" in few
        assert "the group has 2 ranks, the topology 4" in other_group
        assert "nonsense" in policy
        assert "incremental" in policy
        assert "weights of 2 layers given, the model has 3" in weights
        assert "placement is (1, 16)" in placement
        assert "rank 1 was started with window_steps=16, rank 0 with window_steps=8" in peers
        assert "rank 1 was started with limits=Limits(planning_steps=64" in limits
