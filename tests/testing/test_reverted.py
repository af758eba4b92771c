"""The reverted design: the detector names each of its hazards, and meters show what it costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from isotherm.heat.aside import TorchDeviceGroup
from isotherm.streams import Completion, backend_for, forward_path, forward_waits
from isotherm.testing.findings import CaptureBroken, Finding, FreedInUse, Race
from isotherm.testing.meter import overlap_ratio
from isotherm.testing.reverted import RevertedHeat
from isotherm.testing.schedules import MainFirst, Seeded, SideFirst
from isotherm.testing.simulated import Simulation
from ranks import run_ranks

LAYERS, SLOTS, RANKS = 2, 3, 2


def new_heat(simulation: Simulation, *, joins: bool = True) -> RevertedHeat:
    group = simulation.collective_group(RANKS, lambda call, peer, mine: mine * 10)
    heat = RevertedHeat(LAYERS, SLOTS, group, simulation.backend, joins=joins)
    for layer, load in enumerate(heat.moe_load):
        simulation.name(load, f"moe_load {layer}")
    return heat


def engine_step(simulation: Simulation, heat: RevertedHeat, *, cumulative: bool = False) -> None:
    """The engine's own work between two layers, and counts that it frees when it has handed them in."""
    for layer in range(LAYERS):
        expert_tokens = torch.arange(SLOTS, device=simulation.device) + layer
        heat.count(layer, expert_tokens.cumsum(0) if cumulative else expert_tokens, cumulative=cumulative)
        torch.ones(SLOTS, device=simulation.device)


def found(program: Callable[[Simulation], None]) -> list[Finding]:
    """Under one schedule: what is found hangs on no order."""
    with torch.inference_mode(), Simulation(Seeded(0)) as simulation:
        program(simulation)
    return simulation.findings


def texts(findings: list[Finding], kind: type) -> str:
    return "\n".join(str(finding) for finding in findings if isinstance(finding, kind))


@pytest.mark.parametrize("cumulative", [False, True])
def test_its_counting_is_right_and_overlaps_nothing(cumulative: bool) -> None:
    """What it bought with two events and two waits in every layer."""
    with torch.inference_mode(), Simulation(SideFirst()) as simulation:
        heat = new_heat(simulation)
        for _ in range(3):
            engine_step(simulation, heat, cumulative=cumulative)
        assert [load.tolist() for load in heat.moe_load] == [[0, 3, 6], [3, 6, 9]]
    simulation.check()
    assert overlap_ratio(simulation.detector, "moe_load") == 0


def test_counting_without_a_join_overlaps() -> None:
    """The meter can show more than nothing: the same counting, in place, owned, and joined by nobody."""
    with torch.inference_mode(), Simulation(SideFirst()) as simulation:
        main, side = simulation.backend.main_stream(), simulation.backend.side_stream("heat")
        totals = simulation.keep(torch.zeros(SLOTS, dtype=torch.int64, device=simulation.device))
        owned = []
        for _ in range(3):
            counts = torch.arange(SLOTS, device=simulation.device)
            side.wait_event(main.record_event())
            side.submit(lambda counts=counts: totals.add_(counts), reads=[counts], writes=[totals])
            owned.append(Completion(side.record_event(), counts))
            simulation.keep(torch.ones(SLOTS, device=simulation.device))
        del counts
        side.synchronize()
        assert all(completion.done() for completion in owned)
    simulation.check()
    assert overlap_ratio(simulation.detector, "heat") == 1
    with pytest.raises(ValueError, match="no operations"):
        overlap_ratio(simulation.detector, "nobody")


def test_the_side_gathers_what_main_has_not_stacked_yet() -> None:
    def program(simulation: Simulation) -> None:
        new_heat(simulation).gather()

    races = texts(found(program), Race)
    assert "is not ordered with the write by 'stack' on stream 'main'" in races
    assert "moe_load must wait for an event recorded on main behind 'stack'" in races


def test_its_wrong_bytes_arrive_under_some_schedule() -> None:
    gathered = set()
    for schedule in (MainFirst(), SideFirst()):
        with torch.inference_mode(), Simulation(schedule) as simulation:
            heat = new_heat(simulation)
            engine_step(simulation, heat)
            simulation.finish()
            gathered.add(tuple(heat.gather()[:, 1].flatten().tolist()))
    assert (0, 1, 2, 1, 2, 3) in gathered
    assert len(gathered) == 2


def test_main_reads_what_the_side_has_not_counted_yet() -> None:
    """With two micro-batches the join is the other one's; without the join there is nothing at all."""

    def two_micro_batches(simulation: Simulation) -> None:
        heat = new_heat(simulation)
        with simulation.engine_stream("second"):
            engine_step(simulation, heat)
        heat.gather()

    def no_join(simulation: Simulation) -> None:
        heat = new_heat(simulation, joins=False)
        engine_step(simulation, heat)
        heat.gather()

    for program in (two_micro_batches, no_join):
        races = texts(found(program), Race)
        assert "read by 'stack' on stream 'main'" in races
        assert "main must wait for an event recorded on moe_load behind 'add'" in races


def test_only_the_join_kept_the_engines_counts_alive() -> None:
    def program(simulation: Simulation) -> None:
        engine_step(simulation, new_heat(simulation, joins=False))

    freed = texts(found(program), FreedInUse)
    assert "int64 [3]" in freed
    assert "a Completion of an event recorded on moe_load behind 'RevertedHeat.count.add'" in freed


def test_it_allocates_for_every_gather() -> None:
    with torch.inference_mode(), Simulation(MainFirst()) as simulation:
        heat = new_heat(simulation)
        made = []
        for _ in range(3):
            before = simulation.allocations
            heat.gather()
            made.append(simulation.allocations - before)
    assert made[0] == made[1] == made[2] >= 2, "the stack and the buffer, each time"


def test_a_captured_graph_counts_into_memory_that_nobody_reads() -> None:
    def program(simulation: Simulation) -> None:
        heat = new_heat(simulation)
        expert_tokens = simulation.keep(torch.ones(SLOTS, dtype=torch.int64, device=simulation.device))
        with simulation.capture() as graph:
            heat.count(0, expert_tokens)
        for _ in range(3):
            graph.replay()
        assert heat.moe_load[0].tolist() != [3] * SLOTS

    broken = texts(found(program), CaptureBroken)
    assert "work for the side stream moe_load" in broken
    assert "main waits for an event of moe_load" in broken
    assert "of a replayed graph uses 'moe_load 0' int64 [3], which was freed" in broken


def test_a_gather_blocks_the_host() -> None:
    with torch.inference_mode(), Simulation(MainFirst()) as simulation:
        heat = new_heat(simulation)
        before = forward_waits()
        with forward_path():
            heat.gather()
        assert simulation.host_waits == forward_waits() - before == 1


def gather_on_host_streams(rank: int) -> tuple[list[list[list[int]]], int]:
    heat = RevertedHeat(LAYERS, SLOTS, TorchDeviceGroup(dist.group.WORLD), backend_for("cpu"))
    before = forward_waits()
    with torch.inference_mode(), forward_path():
        for layer in range(LAYERS):
            heat.count(layer, torch.arange(SLOTS) + 10 * rank + 100 * layer)
        gathered = heat.gather()
    heat.close()
    return gathered.tolist(), forward_waits() - before


def test_it_runs_on_real_streams_and_blocks_there_too(tmp_path: Path) -> None:
    """For the benchmark beside ours."""
    wanted = np.arange(SLOTS) + 10 * np.arange(RANKS)[:, None] + 100 * np.arange(LAYERS)[:, None, None]
    for loads, waits in run_ranks(gather_on_host_streams, RANKS, tmp_path):
        assert loads == wanted.tolist()
        assert waits >= 1
