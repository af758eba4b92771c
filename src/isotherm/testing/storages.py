"""Real memory as the detector knows it: by the storage that holds it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from isotherm.testing.extents import Extent
from isotherm.testing.races import Detector


class Storage:
    """One storage. The weak reference keeps its address from meaning another."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.reference = _reference(tensor)
        self.name = ""

    @property
    def is_gone(self) -> bool:
        return bool(self.reference.expired())  # type: ignore[no-untyped-call]

    def describe(self, tensor: str) -> str:
        return f"{self.name!r} {tensor}" if self.name else tensor

    def bytes(self) -> np.ndarray | None:
        """A copy of what it holds; None where it is gone."""
        storage = torch.UntypedStorage._new_with_weak_ptr(self.reference.cdata)
        if storage is None:
            return None
        with torch.inference_mode(False):
            flat = torch.empty(0, dtype=torch.uint8).set_(storage)
            return np.array(flat.numpy())


class Storages:
    """All storages that were named so far. What is gone is forgotten, with what was done to it: two
    storages over the same bytes (two ``torch.from_numpy`` of one array) count as two pieces of memory.

    Used under the detector's lock.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._known: dict[int, Storage] = {}

    def of(self, tensor: torch.Tensor) -> Storage:
        address = address_of(tensor)
        if address not in self._known:
            self._forget_gone()
            self._known[address] = Storage(tensor)
        return self._known[address]

    def __iter__(self) -> Iterator[Storage]:
        return iter(tuple(self._known.values()))

    def _forget_gone(self) -> None:
        for address, storage in tuple(self._known.items()):
            if storage.is_gone:
                self._detector.forget(storage)
                del self._known[address]


def address_of(tensor: torch.Tensor) -> int:
    """What names the storage of ``tensor`` as long as it lives, or a weak reference to it does."""
    return int(tensor.untyped_storage()._cdata)


def extent_of(tensor: torch.Tensor) -> Extent:
    """Bytes of its storage."""
    return Extent.of_tensor(tensor)


def _reference(tensor: torch.Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
