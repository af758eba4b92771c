"""How a balancer's ranks find each other again."""

from __future__ import annotations

from uuid import uuid4

import torch.distributed as dist
from torch._C._distributed_c10d import Store
from torch.distributed import distributed_c10d

from isotherm.control import GroupLink, Link, Relink, StoreRelink

_NAME_BYTES = len(uuid4().hex)


def relink_of(link: Link, store: Store | None) -> Relink | None:
    """What makes a link in the place of ``link``, and another when that broke: by way of ``store``, or of the
    one that torch.distributed was started with; None where there is neither, or the link is none of torch's.

    A collective: rank 0 draws a name, so that no other balancer, of these ranks or in this store, is met.
    """
    if store is None and dist.is_initialized():
        store = distributed_c10d._get_default_store()  # torch has no public name for it
    if store is None or not isinstance(link, GroupLink):
        return None
    drawn = uuid4().hex.encode() if link.rank == 0 else None
    name = link.broadcast(drawn, _NAME_BYTES, source=0).decode()
    return StoreRelink(store, name, rank=link.rank, size=link.size, make=link.over)
