"""A model whose experts are spread over the ranks of a group: its steps, its weights, and how it is made."""

from __future__ import annotations

import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from isotherm.balancer import Balancer
from isotherm.config import Config
from isotherm.control import Span, no_span
from isotherm.engines.dispatch import dispatch_tokens
from isotherm.engines.transformers.experts import (
    compute_by,
    expert_tensors,
    find_experts,
    keep_slots,
    moe_shape,
    not_trained,
    outside_graphs,
    slot_function,
    take_over,
)
from isotherm.engines.transformers.logical import LogicalWeights
from isotherm.mover import HostTransport, Transport
from isotherm.placement import Placement
from isotherm.topology import MoEShape, Topology


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

    ``model`` is called as before, `generate` included; each call of it is one step of the balancer, so every
    rank makes the same number of calls, with any inputs of its own. A rank without work calls
    ``dummy_step``; ranks that generate different numbers of tokens pass ``synced_gpus=True``, and those that
    have ended then go on with the others, with tokens that count. Rows that an ``attention_mask`` [batch,
    length] marks 0 are padding: not computed by experts, not counted.

    ``torch.compile`` compiles what lies between the MoE layers; ``fullgraph=True`` is refused by it, since
    tokens that travel between ranks are no part of a graph.
    """

    model: PreTrainedModel
    balancer: Balancer
    meter: ExpertMeter
    _weights: LogicalWeights
    _group: dist.ProcessGroup
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

    def gather_state_dict(self, rank: int = 0) -> dict[str, torch.Tensor]:
        """The state dict of the stock model, bit for bit: on ``rank`` of the group, empty on the others.

        Weights of experts are copies in host memory, stacked by expert; all others are the model's own. A
        collective between steps, on every rank; weights may be on their way to other slots meanwhile.
        """
        return self._weights.gather(rank)

    def load_state_dict(self, state: Mapping[str, torch.Tensor], timeout_seconds: float = 60.0) -> None:
        """Replaces all weights by those of a stock state dict, wherever their experts live now. Between
        steps, on every rank, with the same ``state``; waits for the other ranks.

        Raises:
            ValueError: names other than those of the stock model's state dict.
            LinkError: not every rank made this call in time. Nothing moves until all have.
        """
        self._weights.put_back(state, timeout_seconds)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes a checkpoint that the stock model's ``from_pretrained`` loads: configuration and weights by
        expert. A collective between steps, on every rank; rank 0 of the group writes, and the others return
        when it has."""
        try:
            state = self.gather_state_dict()
            if state:
                self.model.save_pretrained(folder, state_dict=state)
        finally:
            dist.barrier(self._group)

    def close(self) -> None:
        """Ends balancing, on every rank. The model stays expert-parallel with the placement as it is,
        but can no longer be called."""
        for handle in self._handles:
            handle.remove()
        self.balancer.close()

    @outside_graphs
    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = _by_name(module, args, kwargs)
        batch, length = _size_of(given)
        mask = given.get("attention_mask")
        num_tokens = 0 if self._dummy else batch * length
        if isinstance(mask, torch.Tensor) and mask.dim() == 2 and num_tokens:
            # Columns of earlier tokens stand before those of this call.
            padding_T = (mask[:, -length:] == 0).reshape(-1)
            if padded := int(padding_T.sum()):
                self._padding_T = padding_T
                num_tokens -= padded
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

    @outside_graphs
    def _end(self, module: Any, args: Any, output: Any) -> None:
        # A part of the model that is called by itself afterwards has other rows.
        self._padding_T, self._decode = None, False
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
    top_k: int | None = None,
    inline: bool = False,
    transport: Callable[..., Transport] = HostTransport,
    span: Span = no_span,
) -> ExpertParallelModel:
    """Spreads the experts of ``model`` over the ranks of ``group`` and balances them. In place.

    Each rank keeps the weights of its own slots only; everything else of the model, shared experts
    included, is untouched. Called on every rank with equal weights.

    Answers are those of the same engine with balancing off, bit for bit: an expert's row is computed alike
    wherever it is computed, and a token's results are added in the order of its choices.

    Args:
        model: loaded, in eval mode; any family whose experts use transformers' experts interface, with or
            without gate, biases, transposed weights or a norm behind the experts. docs/engines.md lists what
            is tested.
        group: carries the tokens; all ranks of ``topology``.
        control_group: a gloo group for the balancer alone; None: one is made (every rank of the world
            must call this).
        top_k: experts that a token chooses; None: what the configuration or the routers say.
        topology, config, placement, inline, transport, span: as for `Balancer`.

    Raises:
        ValueError: a model without MoE layers, with quantised experts, with layers whose experts differ, or
            that was parallelized before; sizes that do not fit together.
        PeerMismatchError: a rank was started with another configuration. The model is cut by then: load it
            anew.
    """
    modules = find_experts(model)
    shape = moe_shape(model, top_k=top_k)
    placement = _fitting(placement, shape, topology, group)
    take_over(model, modules.values())
    first = dist.get_rank(group) * topology.slots_per_rank
    for layer, module in enumerate(modules.values()):
        keep_slots(module, placement.slot_to_expert[layer, first : first + topology.slots_per_rank].tolist())
    if control_group is None:
        control_group = dist.new_group(dist.get_process_group_ranks(group), backend="gloo")
    balancer = Balancer(
        shape,
        topology,
        group=control_group,
        weights=[expert_tensors(module) for module in modules.values()],
        placement=placement,
        config=config,
        inline=inline,
        transport=transport,
        span=span,
    )
    weights = LogicalWeights(model, modules, balancer, group)
    parallel = ExpertParallelModel(model, balancer, ExpertMeter([0] * shape.layers), weights, group)
    for layer, module in enumerate(modules.values()):
        compute_by(module, _layer_forward(parallel, module, layer))
    parallel._handles += [
        model.register_forward_pre_hook(parallel._begin, with_kwargs=True),
        model.register_forward_hook(parallel._end, always_call=True),
    ]
    return parallel


def _fitting(
    placement: Placement | None, shape: MoEShape, topology: Topology, group: dist.ProcessGroup
) -> Placement:
    """The placement to start from. Sizes are checked before any weight is let go."""
    topology.check_holds(shape.experts)
    if (ranks := dist.get_world_size(group)) != topology.ranks:
        raise ValueError(
            f"the group has {ranks} ranks, the topology {topology.ranks}: give a group of all "
            "expert-parallel ranks"
        )
    placement = placement or Placement.default(shape, topology)
    placement.check_fits(shape, topology)
    return placement


def _by_name(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of the model by the names that its forward has for them."""
    names = inspect.signature(module.forward).parameters if args else ()
    return {**dict(zip(names, args)), **kwargs}


def _size_of(given: Mapping[str, Any]) -> tuple[int, int]:
    """Batch and length of what the model is called with; none where it is neither ids nor embeddings, which
    the model itself refuses."""
    for name in ("input_ids", "inputs_embeds"):
        tensor: torch.Tensor | None = given.get(name)
        if tensor is not None:
            return tensor.shape[0], tensor.shape[1]
    return 0, 0


def _layer_forward(
    parallel: ExpertParallelModel, module: torch.nn.Module, layer: int
) -> Callable[..., torch.Tensor]:
    topology, meter, group = parallel.balancer.topology, parallel.meter, parallel._group
    experts = slot_function(module)

    def forward(
        hidden_TH: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        slots_TK = parallel._route(layer, top_k_index)
        with torch.no_grad():
            done = dispatch_tokens(
                hidden_TH,
                slots_TK,
                top_k_weights,
                experts,
                ranks=topology.ranks,
                slots_per_rank=topology.slots_per_rank,
                group=group,
            )
        meter.received_L[layer] += int(done.received_S.sum())
        meter.expert_seconds += done.expert_seconds
        return not_trained(done.output, hidden_TH, top_k_weights)

    return forward
