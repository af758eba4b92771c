"""Memory of heat and tables, as an engine can plan for it."""

from __future__ import annotations

from isotherm.balancer import Balancer
from isotherm.bench.figures import Figure, Section, Target
from isotherm.bench.traffic import EP32, SHAPE
from isotherm.heat import HeatCollector
from isotherm.status import Memory

LIMIT_BYTES = 8 * 10**6

_NOTE = (
    "Balancer.memory and HeatCollector.memory for EP32 with 32 redundant slots: all buffers, each made "
    "once. Beside a CPU device bytes are host memory too, and tables hold more, for the CPU's kernel."
)
_DEVICES = {"an accelerator": "meta", "a CPU": "cpu"}
"""meta stands for every device that is not the CPU: sizes do not depend on which."""


def measure_memory() -> Section:
    """Bytes by where they lie."""
    figures: list[Figure] = []
    targets: list[Target] = []
    for beside, device in _DEVICES.items():
        memory = Balancer.memory(SHAPE, EP32, device=device)
        figures += _figures(f"Balancer beside {beside}", memory)
        targets.append(
            Target(f"device bytes of a Balancer beside {beside}, EP32", memory.device_bytes, LIMIT_BYTES)
        )
        figures += _figures(
            f"HeatCollector, received, beside {beside}",
            HeatCollector.memory(SHAPE, EP32, source="received", device=device),
        )
    return Section("Memory for heat and tables", _NOTE, tuple(figures), tuple(targets))


def _figures(row: str, memory: Memory) -> list[Figure]:
    return [
        Figure.exact(row, "device", "B", memory.device_bytes),
        Figure.exact(row, "pinned", "B", memory.pinned_bytes),
        Figure.exact(row, "host", "B", memory.host_bytes),
    ]
