"""Tables, replica choice and its kernels: routing that achieves the planned shares."""

from isotherm.router.near import near_split
from isotherm.router.router import Dispatch, Router, warm_up
from isotherm.router.shelf import TableShelf
from isotherm.router.staging import Staged
from isotherm.router.tables import RoutingTables

__all__ = ["Dispatch", "Router", "RoutingTables", "Staged", "TableShelf", "near_split", "warm_up"]
