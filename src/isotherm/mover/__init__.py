"""Retire, fill, publish: weights moved into slots that nobody uses."""

from isotherm.mover.agreed import heard
from isotherm.mover.carrier import Carrier, Transport
from isotherm.mover.checked import CheckedTransport
from isotherm.mover.device import DevicePeers, DeviceTransport, TorchDevicePeers
from isotherm.mover.ledger import BUFFERS, Ledger, Phase, Rules
from isotherm.mover.mover import Mover
from isotherm.mover.saved import write_held
from isotherm.mover.schedule import Fill
from isotherm.mover.slots import LocalSlots, Tensors, Unequal, find_unequal
from isotherm.mover.staging import Staging
from isotherm.mover.transport import HostTransport
from isotherm.mover.weights import ExpertWeights, Weights

__all__ = [
    "BUFFERS",
    "Carrier",
    "CheckedTransport",
    "DevicePeers",
    "DeviceTransport",
    "ExpertWeights",
    "Fill",
    "HostTransport",
    "Ledger",
    "LocalSlots",
    "Mover",
    "Phase",
    "Rules",
    "Staging",
    "Tensors",
    "TorchDevicePeers",
    "Transport",
    "Unequal",
    "Weights",
    "find_unequal",
    "heard",
    "write_held",
]
