"""Running totals, snapshots and windows: heat collected beside the engine."""

from isotherm.heat.buffers import Asked, Source, memory_of_heat
from isotherm.heat.collector import HeatCollector
from isotherm.heat.gather import HeatGather

__all__ = ["Asked", "HeatCollector", "HeatGather", "Source", "memory_of_heat"]
