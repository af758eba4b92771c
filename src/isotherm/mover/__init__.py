"""Retire, fill, publish: weights moved into slots that nobody uses."""

from isotherm.mover.carrier import Carrier, Transport
from isotherm.mover.ledger import Ledger, Phase, Rules
from isotherm.mover.mover import Mover
from isotherm.mover.saved import write_held
from isotherm.mover.slots import LocalSlots, Tensors, Unequal, find_unequal
from isotherm.mover.transport import HostTransport
from isotherm.mover.weights import ExpertWeights, Weights

__all__ = [
    "Carrier",
    "ExpertWeights",
    "HostTransport",
    "Ledger",
    "LocalSlots",
    "Mover",
    "Phase",
    "Rules",
    "Tensors",
    "Transport",
    "Unequal",
    "Weights",
    "find_unequal",
    "write_held",
]
