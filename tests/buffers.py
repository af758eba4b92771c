"""The buffers that an object holds, found by following its attributes."""

from __future__ import annotations

from collections import deque
from types import ModuleType

import numpy as np
import torch

_ATOMS = (int, float, str, bytes, bool, type(None), type, ModuleType, torch.device, torch.dtype)


def held_buffers(root, *, leave_out=()):
    """``(tensor bytes, numpy bytes)`` of all memory reachable from ``root``, each storage once; numpy views
    of tensors count as those. Follows attributes, slots, lists, tuples, dicts and deques."""
    storages, arrays = {}, {}
    seen, todo = {id(each) for each in leave_out}, [root]
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, _ATOMS):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(item, np.ndarray):
            while isinstance(item.base, np.ndarray):
                item = item.base
            arrays[item.ctypes.data] = item.nbytes
        elif isinstance(item, (list, tuple, set, frozenset, deque)):
            todo += item
        elif isinstance(item, dict):
            todo += item.values()
        else:
            todo += getattr(item, "__dict__", {}).values()
            slots = [name for kind in type(item).__mro__ for name in getattr(kind, "__slots__", ())]
            todo += [getattr(item, name) for name in slots if hasattr(item, name) and name[0:2] != "__"]
    in_tensors = [range(start, start + max(size, 1)) for start, size in storages.items()]
    own = {start: size for start, size in arrays.items() if not any(start in each for each in in_tensors)}
    return sum(storages.values()), sum(own.values())
