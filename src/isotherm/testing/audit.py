"""What torch operations inside of work touch, held against what the work declared.

A dispatch mode sees torch alone, on its own thread. What numpy or a compiled kernel writes is seen by
canaries: copies of all known memory from before the work, compared after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from isotherm.testing.extents import Extent
from isotherm.testing.findings import Operation, Undeclared, UnexplainedWrite
from isotherm.testing.operators import is_view, leaves, name_of, text_of, touched
from isotherm.testing.races import Detector
from isotherm.testing.storages import Storage, Storages, address_of, extent_of
from isotherm.testing.timeline import site_of_caller


@dataclass(frozen=True, eq=False)
class Declared:
    """Bytes that work says it reads or writes."""

    storage: Storage
    extent: Extent
    writes: bool
    tensor: str


class TorchAudit(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hook
    """Calls ``on_touch(tensor, writes, name)`` for what each torch operation on this thread touches; with
    ``spares_own`` except memory that was made since the mode was entered."""

    def __init__(self, on_touch: Callable[[torch.Tensor, bool, str], None], *, spares_own: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_touch = on_touch
        self._spares_own = spares_own
        self._made: dict[int, StorageWeakRef] = {}  # held, so that an address means one storage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)
        reads, writes = touched(func, args, kwargs)
        given = {address_of(tensor) for tensor in _tensors((args, kwargs))}
        for tensor, is_write in [*((read, False) for read in reads), *((write, True) for write in writes)]:
            self._touch(tensor, is_write, name_of(func))
        result = func(*args, **kwargs)
        made = [tensor for tensor in _tensors(result) if address_of(tensor) not in given]
        if made and is_view(func):  # it could have been a view, and became a copy
            for tensor in _tensors((args, kwargs)):
                self._touch(tensor, False, name_of(func))
        if self._spares_own:
            self._own(made or (_tensors(args) if name_of(func) == "lift_fresh" else []))
        else:
            for tensor in made:
                self._touch(tensor, True, name_of(func))
        return result

    def _own(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            reference = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self._made[address_of(tensor)] = reference

    def _touch(self, tensor: torch.Tensor, is_write: bool, name: str) -> None:
        if address_of(tensor) not in self._made:
            self._on_touch(tensor, is_write, name)


class WorkAudit:
    """Holds one piece of work to what it declared."""

    def __init__(
        self, detector: Detector, storages: Storages, operation: Operation, declared: Sequence[Declared]
    ) -> None:
        self._detector = detector
        self._storages = storages
        self._operation = operation
        self._declared = declared

    @contextmanager
    def watching_torch(self) -> Iterator[None]:
        """Finds torch operations of the calling thread on memory that is not declared."""
        with TorchAudit(self._on_touch, spares_own=True):
            yield

    @contextmanager
    def watching_bytes(self) -> Iterator[None]:
        """Finds known memory that changes and is not declared as written. Nothing else may write to known
        memory meanwhile."""
        with self._detector.lock:
            before = [(storage, storage.bytes()) for storage in self._storages]
        try:
            yield
        finally:
            for storage, old in before:
                self._compare(storage, old)

    def _on_touch(self, tensor: torch.Tensor, is_write: bool, name: str) -> None:
        extent, detector = extent_of(tensor), self._detector
        with detector.lock:
            storage = self._storages.of(tensor)
            if self._union(storage, writes_only=is_write).covers(extent):
                return
            text, site = text_of(tensor), site_of_caller()
            known_as = storage.describe(text)
            finding = Undeclared(self._operation, known_as, repr(name), is_write, site)
            detector.report(finding, ("undeclared", site, known_as, is_write))
            detector.touch(self._operation, storage, extent, writes=is_write, tensor=text)

    def _compare(self, storage: Storage, old: np.ndarray | None) -> None:
        new = storage.bytes()
        if old is None or new is None or len(old) != len(new) or np.array_equal(old, new):
            return
        declared = np.zeros(len(new), bool)
        extent = self._union(storage, writes_only=True)
        for start, stop in zip(extent.starts, extent.stops, strict=True):
            declared[start:stop] = True
        if ((old != new) & ~declared).any():
            tensor = storage.describe(f"memory of {len(new)} bytes")
            self._detector.report(UnexplainedWrite(tensor, f"the work {self._operation}", site_of_caller()))

    def _union(self, storage: Storage, *, writes_only: bool) -> Extent:
        return Extent.union(
            declared.extent
            for declared in self._declared
            if declared.storage is storage and (declared.writes or not writes_only)
        )


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in leaves(tree) if isinstance(leaf, torch.Tensor)]
