"""Hugging Face MoE models made expert-parallel and balanced, through transformers' experts interface."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from isotherm.balancer import Balancer
from isotherm.config import Config
from isotherm.control import Span, no_span
from isotherm.engines.dispatch import dispatch_tokens
from isotherm.errors import MissingExtraError
from isotherm.mover import HostTransport, Transport
from isotherm.placement import Placement
from isotherm.topology import MoEShape, Topology

try:
    from transformers import PreTrainedModel
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
except ModuleNotFoundError as error:
    raise MissingExtraError("transformers", "transformers") from error

_IMPLEMENTATION = "isotherm"


@dataclass
class ExpertMeter:
    """What this rank did since ``reset``: pairs that its experts received per layer, and CPU seconds of the
    calling thread in the experts and in Isotherm."""

    received_L: list[int]
    expert_seconds: float = 0.0
    isotherm_seconds: float = 0.0

    def reset(self) -> None:
        self.received_L[:] = [0] * len(self.received_L)
        self.expert_seconds = self.isotherm_seconds = 0.0

    @contextmanager
    def in_isotherm(self) -> Iterator[None]:
        """Adds the CPU time that the block takes."""
        begun = time.thread_time()
        try:
            yield
        finally:
            self.isotherm_seconds += time.thread_time() - begun


@dataclass
class ExpertParallelModel:
    """A model whose experts are spread over the ranks of a group.

    ``model`` is called as before; each call is one step of the balancer, so every rank makes the same
    number of calls, with any inputs of its own; a rank without work calls ``dummy_step``. Rows that an
    ``attention_mask`` [batch, length] marks 0 are padding: not computed by experts, not counted.
    """

    model: PreTrainedModel
    balancer: Balancer
    meter: ExpertMeter
    _handles: list[Any] = field(default_factory=list)
    _dummy: bool = False
    _decode: bool = False
    _padding_T: torch.Tensor | None = None

    @torch.inference_mode()
    def dummy_step(self) -> None:
        """A step of this rank without tokens: takes part in the others' and counts nothing."""
        self._dummy = True
        try:
            self.model(input_ids=torch.zeros((1, 1), dtype=torch.int64, device=self.model.device))
        finally:
            self._dummy = False

    def close(self) -> None:
        """Ends balancing, on every rank. The model stays expert-parallel with the placement as it is,
        but can no longer be called."""
        for handle in self._handles:
            handle.remove()
        self.balancer.close()

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        length = ids.shape[-1]
        mask = kwargs.get("attention_mask")
        num_tokens = 0 if self._dummy else ids.numel()
        self._padding_T = None
        if mask is not None and mask.dim() == 2 and not self._dummy:
            # Columns of earlier tokens stand before those of this call.
            self._padding_T = (mask[:, -length:] == 0).reshape(-1)
            num_tokens -= int(self._padding_T.sum())
        self._decode = length == 1
        with self.meter.in_isotherm():
            self.balancer.begin_step(num_tokens, num_decode_tokens=num_tokens if self._decode else 0)

    def _route(self, layer: int, ids_TK: torch.Tensor) -> torch.Tensor:
        if self._padding_T is None:
            with self.meter.in_isotherm():
                return self.balancer.route(layer, ids_TK)
        # Padding stands between real tokens: every row is read, and padded ones name no expert.
        ids_TK = ids_TK.masked_fill(self._padding_T[:, None], -1)
        rows = len(ids_TK)
        with self.meter.in_isotherm():
            return self.balancer.route(
                layer, ids_TK, num_tokens=rows, num_decode_tokens=rows if self._decode else 0
            )

    def _end(self, module: Any, args: Any, output: Any) -> None:
        with self.meter.in_isotherm():
            self.balancer.end_step()


def parallelize(
    model: PreTrainedModel,
    group: dist.ProcessGroup,
    *,
    topology: Topology,
    control_group: dist.ProcessGroup | None = None,
    config: Config | None = None,
    placement: Placement | None = None,
    inline: bool = False,
    transport: Callable[..., Transport] = HostTransport,
    span: Span = no_span,
) -> ExpertParallelModel:
    """Spreads the experts of ``model`` over the ranks of ``group`` and balances them. In place.

    Each rank keeps the weights of its own slots only; everything else of the model is untouched. Called
    on every rank with equal weights.

    Args:
        model: loaded, in eval mode, any family whose experts use transformers' experts interface with
            gated, bias-free, untransposed experts (Qwen3-MoE is tested).
        group: carries the tokens; all ranks of ``topology``.
        control_group: a gloo group for the balancer alone; None: one is made (every rank of the world
            must call this).
        topology, config, placement, inline, transport, span: as for `Balancer`.

    Raises:
        ValueError: a model without MoE layers, or with experts of a kind that is not supported.
        PeerMismatchError: a rank was started with another configuration.
    """
    modules = expert_modules(model)
    shape = moe_shape(model)
    topology.check_holds(shape.experts)
    placement = placement or Placement.default(shape, topology)
    rank = dist.get_rank(group)
    local = slice(rank * topology.slots_per_rank, (rank + 1) * topology.slots_per_rank)
    for layer, module in enumerate(modules):
        _keep_slots(module, placement.slot_to_expert[layer, local].tolist())
    if control_group is None:
        control_group = dist.new_group(dist.get_process_group_ranks(group), backend="gloo")
    balancer = Balancer(
        shape,
        topology,
        group=control_group,
        weights=[dict(module.named_parameters()) for module in modules],
        placement=placement,
        config=config,
        inline=inline,
        transport=transport,
        span=span,
    )
    parallel = ExpertParallelModel(model, balancer, ExpertMeter([0] * shape.layers))
    for layer, module in enumerate(modules):
        object.__setattr__(module, "_isotherm", _layer_forward(parallel, module, layer, group))
    ALL_EXPERTS_FUNCTIONS.register(_IMPLEMENTATION, _experts_forward)
    model.set_experts_implementation(_IMPLEMENTATION)
    parallel._handles += [
        model.register_forward_pre_hook(parallel._begin, with_kwargs=True),
        model.register_forward_hook(parallel._end, always_call=True),
    ]
    return parallel


def expert_modules(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The modules that hold the experts of each MoE layer, in the model's order.

    Raises:
        ValueError: there are none, or they are of a kind that is not supported.
    """
    modules = [module for module in model.modules() if hasattr(module, "_is_expert_parallel")]
    if not modules:
        raise ValueError(
            f"{type(model).__name__} has no MoE layer with transformers' experts interface: choose a "
            "Mixture-of-Experts model, such as Qwen3MoeForCausalLM"
        )
    for module in modules:
        supported = module.has_gate and not (
            module.has_bias or module.is_transposed or module.has_post_expert_norm
        )
        if not supported:
            raise ValueError(
                f"{type(module).__name__}: experts with biases, without a gate, transposed or with a "
                "norm behind them are not supported yet; choose a model of the Qwen3-MoE kind"
            )
    return modules


def moe_shape(model: PreTrainedModel) -> MoEShape:
    """The MoE layers of ``model``, named by the model's own layer numbers."""
    modules = {id(module) for module in expert_modules(model)}
    ids = []
    for name, module in model.named_modules():
        if id(module) in modules:
            ids.append(next(int(part) for part in name.split(".") if part.isdigit()))
    first: Any = expert_modules(model)[0]
    top_k = model.config.get_text_config().num_experts_per_tok
    return MoEShape(layers=len(ids), experts=int(first.num_experts), top_k=int(top_k), layer_ids=tuple(ids))


def _keep_slots(module: torch.nn.Module, experts: list[int]) -> None:
    """Replaces weights by expert with weights by local slot."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        slots = parameter.detach()[experts].clone()
        setattr(module, name, torch.nn.Parameter(slots, requires_grad=False))


def _experts_forward(module: Any, *args: torch.Tensor) -> torch.Tensor:
    """What transformers calls in place of the experts' own forward."""
    output: torch.Tensor = module._isotherm(*args)
    return output


def _layer_forward(
    parallel: ExpertParallelModel, module: Any, layer: int, group: dist.ProcessGroup
) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    topology, meter = parallel.balancer.topology, parallel.meter

    def experts(tiles: torch.Tensor, slot: int) -> torch.Tensor:
        gate_up = torch.bmm(tiles, _per_tile(module.gate_up_proj[slot], len(tiles)))
        return torch.bmm(module._apply_gate(gate_up), _per_tile(module.down_proj[slot], len(tiles)))

    def forward(
        hidden_TH: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        slots_TK = parallel._route(layer, top_k_index)
        done = dispatch_tokens(
            hidden_TH,
            slots_TK,
            top_k_weights.to(hidden_TH.dtype),
            experts,
            ranks=topology.ranks,
            slots_per_rank=topology.slots_per_rank,
            group=group,
        )
        meter.received_L[layer] += int(done.received_S.sum())
        meter.expert_seconds += done.expert_seconds
        return done.output

    return forward


def _per_tile(weight: torch.Tensor, tiles: int) -> torch.Tensor:
    """The transposed weight once per tile, without a copy."""
    return weight.t().unsqueeze(0).expand(tiles, -1, -1)
