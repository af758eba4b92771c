"""What was handed over for good is written by nobody: found wherever the write stands in the order."""

from __future__ import annotations

import pytest
import torch

from isotherm import HeatCollector, MoEShape, Topology
from isotherm.streams import backend_for
from isotherm.testing.findings import Finding, WrittenAfterHandOver
from isotherm.testing.schedules import Seeded
from isotherm.testing.simulated import Simulation
from isotherm.testing.watched import watch

SHAPE = MoEShape(layers=2, experts=4, top_k=2)


def collect(simulation: Simulation, *, borrowed: bool, reused: str) -> None:
    """An engine that hands its counts in, and writes to them again: within the step, in the next, or not."""
    collector = HeatCollector(
        SHAPE,
        Topology(ranks=1, slots_per_rank=4),
        None,
        source="received",
        window_steps=2,
        backend=simulation.backend,
    )
    counts_S = simulation.keep(torch.ones(4, dtype=torch.int64, device=simulation.device))
    for _ in range(3):
        for layer in range(2):
            given_S = counts_S.clone() if reused == "never" else counts_S
            collector.count(layer, given_S, borrowed=borrowed)
            if reused == "in the step":
                counts_S.zero_()
        collector.end_step(num_tokens=4)
        if reused == "in the next":
            counts_S.add_(1)
    simulation.finish()
    collector.close()


def found(*, borrowed: bool, reused: str) -> list[Finding]:
    with torch.inference_mode(), Simulation(Seeded(1)) as simulation:
        collect(simulation, borrowed=borrowed, reused=reused)
    return simulation.findings


@pytest.mark.parametrize("reused", ["in the step", "in the next"])
def test_counts_that_are_handed_over_and_written_again_are_found(reused: str) -> None:
    findings = [
        each for each in found(borrowed=False, reused=reused) if isinstance(each, WrittenAfterHandOver)
    ]
    assert findings
    assert "int64 [4]" in str(findings[0])
    assert "test_owned.py" in findings[0].handed_over
    assert "lend it (borrowed=True)" in str(findings[0])


@pytest.mark.parametrize(
    ("borrowed", "reused"), [(True, "in the step"), (True, "in the next"), (False, "never")]
)
def test_the_right_choice_finds_nothing(borrowed: bool, reused: str) -> None:
    assert found(borrowed=borrowed, reused=reused) == []


@pytest.mark.parametrize("borrowed", [True, False])
def test_on_real_threads_too(borrowed: bool) -> None:
    """On the CPU the counts are added at once, so nothing would be wrong here; on a device it would."""
    backend = watch(backend_for("cpu"))
    topology = Topology(ranks=1, slots_per_rank=4)
    collector = HeatCollector(SHAPE, topology, None, source="received", backend=backend)
    counts_S = torch.ones(4, dtype=torch.int64)
    collector.count(0, counts_S, borrowed=borrowed)
    with backend.watching_torch():
        counts_S.zero_()
    collector.close()
    kinds = [type(finding) for finding in backend.detector.findings]
    assert kinds == ([] if borrowed else [WrittenAfterHandOver])


def test_memory_that_comes_again_is_nobodys() -> None:
    """Freed, and handed out again, it may be written."""
    with torch.inference_mode(), Simulation(Seeded(1)) as simulation:
        counts_S = torch.ones(4, device=simulation.device)
        simulation.backend.own(counts_S)
        del counts_S
        simulation.keep(torch.ones(4, device=simulation.device)).add_(1)
    simulation.check()
