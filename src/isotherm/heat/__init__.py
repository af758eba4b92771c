"""Running totals, snapshots and windows: heat collected beside the engine."""

from isotherm.heat.collector import HeatCollector

__all__ = ["HeatCollector"]
