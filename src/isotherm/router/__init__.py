"""Tables, replica choice and its kernels: routing that achieves the planned shares."""

from isotherm.router.router import Router, warm_up
from isotherm.router.tables import RoutingTables

__all__ = ["Router", "RoutingTables", "warm_up"]
