"""A spread model's weights by the names and shapes of the stock model: gathered, and put back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from isotherm.balancer import Balancer
from isotherm.engines.transformers.experts import expert_tensors
from isotherm.errors import ProtocolError


class LogicalWeights:
    """``modules``: the modules of the experts by name, in the order of the balancer's layers."""

    def __init__(
        self,
        model: PreTrainedModel,
        modules: Mapping[str, torch.nn.Module],
        balancer: Balancer,
        group: dist.ProcessGroup,
    ) -> None:
        self._model, self._modules = model, modules
        self._balancer, self._group = balancer, group

    def gather(self, rank: int) -> dict[str, torch.Tensor]:
        """The stock model's state dict on ``rank`` of the group, empty on the others: weights of experts in
        host memory, all others as they stand in the model. A collective; holds one tensor of one layer
        beside what the rank has."""
        live = self._balancer.logical_state()
        owned_LE = self._owned(live)
        target = dist.get_global_rank(self._group, rank)
        is_target = dist.get_rank(self._group) == rank
        state = self._model.state_dict() if is_target else {}
        for layer, (path, module) in enumerate(self._modules.items()):
            for name, slots in expert_tensors(module).items():
                stacked = slots.new_zeros(owned_LE.shape[1], *slots.shape[1:])
                for expert, tensors in live[layer].items():
                    if owned_LE[layer, expert]:
                        stacked[expert] = tensors[name].detach()
                # One rank gives each expert, the others zeros: a sum of bytes changes none of them.
                dist.reduce(stacked.view(-1).view(torch.uint8), target, group=self._group)
                if is_target:
                    state[f"{path}.{name}"] = stacked.cpu()
        return state

    def put_back(self, state: Mapping[str, torch.Tensor], timeout_seconds: float) -> None:
        """Loads a stock state dict: every slot on this rank gets the weights of its expert in it."""
        names = [{name: f"{path}.{name}" for name in expert_tensors(m)} for path, m in self._modules.items()]
        stacked = {full for layer in names for full in layer.values()}
        self._check(state, stacked)
        rest = {name: tensor for name, tensor in state.items() if name not in stacked}
        self._model.load_state_dict(rest, strict=False)
        by_expert = {
            (layer, expert): {name: state[full][expert] for name, full in named.items()}
            for layer, named in enumerate(names)
            for expert in range(self._balancer.shape.experts)
        }
        self._balancer.reload(by_expert, timeout_seconds)

    def _check(self, state: Mapping[str, torch.Tensor], stacked: set[str]) -> None:
        """Before anything is replaced: a model of which a part was, would answer wrongly."""
        held = self._model.state_dict()
        if differing := sorted(state.keys() ^ held.keys()):
            raise ValueError(
                f"{len(differing)} names are missing or unknown, such as {differing[0]}: give all weights by "
                "the names that the stock model's state_dict() has"
            )
        for name, tensor in held.items():
            experts = (self._balancer.shape.experts,) if name in stacked else tensor.shape[:1]
            if state[name].shape != (wanted := torch.Size((*experts, *tensor.shape[1:]))):
                raise ValueError(
                    f"{name} has shape {tuple(state[name].shape)}, in the stock model {tuple(wanted)}: give "
                    "the weights of a model of the same configuration"
                )

    def _owned(self, live: list[dict[int, Mapping[str, torch.Tensor]]]) -> torch.Tensor:
        """bool [layers, experts]: the experts that this rank gives, those that no lower rank has live. One
        rank may know a replica to be retired that another still takes for live, so they tell each other."""
        shape, ranks = self._balancer.shape, dist.get_world_size(self._group)
        mine_LE = torch.zeros((shape.layers, shape.experts), dtype=torch.uint8, device=self._model.device)
        for layer, experts in enumerate(live):
            mine_LE[layer, list(experts)] = 1
        all_GLE = [torch.empty_like(mine_LE) for _ in range(ranks)]
        dist.all_gather(all_GLE, mine_LE, group=self._group)
        for layer, expert in torch.stack(all_GLE).sum(0).eq(0).nonzero().tolist():
            # The same on every rank. Gathered all the same, it would be saved as zeros.
            raise ProtocolError(f"expert {expert} of balanced layer {layer} is live on no rank")
        below_LE = torch.stack(all_GLE)[: dist.get_rank(self._group)].sum(0)
        return (mine_LE > below_LE).cpu()
