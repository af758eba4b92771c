"""Tables, replica choice and its kernels: routing that achieves the planned shares."""

from isotherm.router.router import Router, warm_up
from isotherm.router.shelf import TableShelf
from isotherm.router.staging import Staged
from isotherm.router.tables import RoutingTables

__all__ = ["Router", "RoutingTables", "Staged", "TableShelf", "warm_up"]
