"""What the slots hold, written for the next start."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import numpy as np

from isotherm.placement import Placement


def write_held(path: Path, placement: Placement, layer_ids: tuple[int, ...], ranks: int) -> None:
    """Writes an ``.npz`` as `isotherm.read_placement` reads it; whole, or not at all.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            np.savez(
                file,
                slot_to_expert_LP=placement.slot_to_expert,
                layer_ids=np.array(layer_ids, np.int64),
                experts=np.array(placement.experts, np.int64),
                ranks=np.array(ranks, np.int64),
                model_layers=np.array(0, np.int64),  # not known here
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
