"""The router objects of a model inside vLLM, found without naming models, and whose rows they route."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from isotherm.topology import MoEShape

if TYPE_CHECKING:
    import torch

See: TypeAlias = "Callable[[torch.Tensor], None]"
"""Is shown the logical experts [tokens, top_k] that a router chose, before any replica is."""


@dataclass(frozen=True, eq=False)
class Routers:
    """The routers of a model's MoE layers, in the order of ``shape.ids``."""

    shape: MoEShape
    routers: tuple[Any, ...]

    def show(self, see_L: list[See]) -> None:
        """From here on shows each layer's choices, and then whoever asks the router for them: vLLM itself can
        return them with its answers."""
        for router, see in zip(self.routers, see_L, strict=True):
            _Shown(router, see)


def find_routers(model: Any) -> Routers:
    """The routers of the modules that have one and a layer number, as vLLM's MoE layers do.

    Raises:
        ValueError: there are none, or a layer chooses experts in a kernel or in code of its own, where nobody
            sees them.
    """
    found: dict[int, Any] = {}
    for module in model.modules():
        router = getattr(module, "router", None)
        if hasattr(module, "capture_fn") and hasattr(module, "layer_id"):
            raise _hidden(module, "in code of its own")
        if hasattr(router, "set_capture_fn") and hasattr(module, "layer_id"):
            if module.is_monolithic:
                raise _hidden(module, "inside its own kernel")
            found[int(module.layer_id)] = module
    if not found:
        raise ValueError("the model has no MoE layer with a router: there is no heat to collect")
    layers = [found[layer] for layer in sorted(found)]
    shape = MoEShape(
        layers=len(layers),
        experts=max(int(each.moe_config.num_logical_experts) for each in layers),
        top_k=max(int(each.router.top_k) for each in layers),
        layer_ids=tuple(sorted(found)),
    )
    return Routers(shape, tuple(each.router for each in layers))


def _hidden(module: Any, where: str) -> ValueError:
    return ValueError(
        f"layer {module.layer_id} ({type(module).__name__}) chooses experts {where}, where they cannot be "
        "seen: choose another MoE backend"
    )


class _Shown:
    """Stands between a router and the function that vLLM gives it to capture what it chose."""

    def __init__(self, router: Any, see: See) -> None:
        self._see, self._next = see, router.capture_fn
        router.set_capture_fn(self.capture)
        router.set_capture_fn = self._set_next

    def capture(self, ids_TK: torch.Tensor) -> None:
        self._see(ids_TK)
        if self._next is not None:
            self._next(ids_TK)

    def _set_next(self, capture_fn: See | None) -> None:
        self._next = capture_fn


def own_rows(ids_TK: torch.Tensor, metadata: Any, dp_rank: int) -> torch.Tensor | None:
    """The rows of the tokens of this data-parallel rank, its padding last; None where it cannot be told which
    they are.

    A router sees the tokens of its own rank, or those of all ranks one after another, as they are or padded
    to shards of equal length. ``metadata`` is that of vLLM's forward context; None: there is one rank.
    """
    if metadata is None:
        return ids_TK
    sizes = [int(size) for size in metadata.num_tokens_across_dp_cpu]
    own, rows = sizes[dp_rank], len(ids_TK)
    if rows == own:
        return ids_TK
    shards = getattr(metadata, "local_sizes", None) or sizes
    if rows == sum(sizes):
        shards = sizes
    if rows != sum(shards):
        return None
    first = sum(shards[: dp_rank * (len(shards) // len(sizes))])
    return ids_TK[first : first + own]
