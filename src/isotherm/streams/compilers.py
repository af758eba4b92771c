"""What compiles for the device."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch


@cache
def triton_compiles_for(device_type: str) -> bool:
    """Whether Triton is installed and compiles for devices of this type: the accelerator that is here, and
    no other (not what a simulation calls a device)."""
    present = torch.accelerator.current_accelerator(check_available=True)
    return present is not None and present.type == device_type and find_spec("triton") is not None
