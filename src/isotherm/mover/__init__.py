"""Retire, fill, publish: weights moved into slots that nobody uses."""

from isotherm.mover.ledger import Ledger, Phase, Rules
from isotherm.mover.mover import Mover, Transport
from isotherm.mover.transport import HostTransport
from isotherm.mover.weights import ExpertWeights, Weights

__all__ = [
    "ExpertWeights",
    "HostTransport",
    "Ledger",
    "Mover",
    "Phase",
    "Rules",
    "Transport",
    "Weights",
]
