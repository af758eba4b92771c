"""What transformers' experts interface declares of a model: where its experts are, how they compute.

Nothing here knows a model by name. A module that the interface decorates says whether its experts have a
gate, biases, transposed weights or a norm behind them; its parameters are stacked by expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, TypeVar

import torch

from isotherm.engines.dispatch import ExpertFunction
from isotherm.errors import IsothermError, MissingExtraError
from isotherm.topology import MoEShape

try:
    from transformers import PreTrainedModel
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
except ModuleNotFoundError as error:
    raise MissingExtraError("transformers", "transformers") from error

_Function = TypeVar("_Function", bound=Callable[..., Any])

_IMPLEMENTATION = "isotherm"
_FORWARD = "_isotherm"
"""What a module that was cut to the slots of its rank has: what computes it."""
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def find_experts(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """The modules that hold the experts of each MoE layer, by name, in the model's order.

    Raises:
        ValueError: there are none, their weights are stored in a way that the interface does not declare
            (quantised, or spread already), or the layers differ.
    """
    found = {name: module for name, module in model.named_modules() if hasattr(module, "_is_expert_parallel")}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no MoE layer with transformers' experts interface: choose a "
            "Mixture-of-Experts model, such as Qwen3MoeForCausalLM"
        )
    for name, module in found.items():
        _check_tensors(name, module)
    sizes = {name: _sizes(module) for name, module in found.items()}
    for first, second in pairwise(sizes):
        if sizes[first] != sizes[second]:
            raise ValueError(
                f"the experts of {second} are not like those of {first}: {sizes[second]} against "
                f"{sizes[first]}; give the submodel whose experts are alike"
            )
    return found


def moe_shape(model: PreTrainedModel, *, top_k: int | None = None) -> MoEShape:
    """The MoE layers of ``model``, named by the model's own layer numbers.

    ``top_k``: experts that a token chooses; None: what the configuration or the routers say.

    Raises:
        ValueError: as `find_experts`; a model that was parallelized before; two MoE layers with one number;
            ``top_k`` is said nowhere.
    """
    found = find_experts(model)
    if any(hasattr(module, _FORWARD) for module in found.values()):
        raise ValueError(
            f"{type(model).__name__} was parallelized before, and this rank has the experts of its slots "
            "alone: load the model anew"
        )
    ids = tuple(next(int(part) for part in name.split(".") if part.isdigit()) for name in found)
    if len(set(ids)) != len(ids):
        raise ValueError(
            f"{type(model).__name__}: layers of different parts share numbers ({', '.join(found)}); give "
            "the part whose experts are to be spread"
        )
    experts = next(iter(_sizes(next(iter(found.values()))).values()))[0]
    return MoEShape(layers=len(ids), experts=experts, top_k=top_k or _top_k_of(model, found), layer_ids=ids)


def expert_tensors(module: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that are stacked by expert, or by slot: those of the module itself. What its
    submodules hold, such as a norm, is shared by all experts."""
    return dict(module.named_parameters(recurse=False))


def keep_slots(module: torch.nn.Module, experts: list[int]) -> None:
    """Replaces weights by expert with weights by local slot."""
    compute_by(module, None)
    for name, parameter in expert_tensors(module).items():
        slots = parameter.detach()[experts].clone()
        setattr(module, name, torch.nn.Parameter(slots, requires_grad=False))


def slot_function(module: Any) -> ExpertFunction:
    """Computes tiles of rows with the weights in a local slot, as the interface declares them."""
    up = "gate_up_proj" if module.has_gate else "up_proj"
    activate = module._apply_gate if module.has_gate else module.act_fn

    def project(tiles: torch.Tensor, name: str, slot: int) -> torch.Tensor:
        weight: torch.Tensor = getattr(module, name)[slot]
        matrix = weight if module.is_transposed else weight.t()
        product = torch.bmm(tiles, matrix.expand(len(tiles), -1, -1))  # once per tile, without a copy
        return product + getattr(module, f"{name}_bias")[slot] if module.has_bias else product

    def compute(tiles: torch.Tensor, slot: int) -> torch.Tensor:
        rows = project(activate(project(tiles, up, slot)), "down_proj", slot)
        normed: torch.Tensor = module.post_expert_norm(rows) if module.has_post_expert_norm else rows
        return normed

    return compute


def take_over(model: PreTrainedModel, modules: Iterable[torch.nn.Module]) -> None:
    """Lets transformers call what `compute_by` gives in place of the own forward of each of ``modules``.

    Raises:
        ValueError: the model's class does not let its experts' implementation be chosen.
    """
    ALL_EXPERTS_FUNCTIONS.register(_IMPLEMENTATION, _experts_forward)
    model.set_experts_implementation(_IMPLEMENTATION)
    for module in modules:
        config: Any = module.config
        if config._experts_implementation != _IMPLEMENTATION:
            raise ValueError(
                f"{type(model).__name__} does not let the implementation of {type(module).__name__} be "
                "chosen; give the part of the model that holds the experts"
            )


def compute_by(module: torch.nn.Module, forward: Callable[..., torch.Tensor] | None) -> None:
    """Computes the experts of a module that was taken over by ``forward(hidden_TH, top_k_index,
    top_k_weights)``; None: by nothing yet. A compiler leaves these calls alone, and compiles what is around
    them."""
    # Past torch's own bookkeeping: the function is no part of the module.
    object.__setattr__(module, _FORWARD, forward)


def not_trained(output: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
    """``output``, made of ``inputs`` without a graph of gradients. Backward through it raises: what goes past
    the experts would else pass for the gradient."""
    if not (torch.is_grad_enabled() and any(each.requires_grad for each in inputs)):
        return output
    joined: torch.Tensor = _NotTrained.apply(output, *inputs)  # type: ignore[no-untyped-call]
    return joined


class _NotTrained(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise IsothermError(
            "experts that are spread over ranks have no gradients: train the stock model, and load its "
            "weights here by load_state_dict"
        )


def outside_graphs(function: _Function) -> _Function:
    """Lets a compiler call ``function`` as it is, between graphs."""
    kept: _Function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return kept


@outside_graphs
def _experts_forward(module: Any, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
    forward: Callable[..., torch.Tensor] | None = getattr(module, _FORWARD, None)
    if forward is None:
        raise IsothermError(
            f"{type(module).__name__} was not parallelized, but shares its configuration object with a model "
            "that was: give each model a configuration of its own, such as copy.deepcopy(config)"
        )
    return forward(*args, **kwargs)


def _check_tensors(name: str, module: Any) -> None:
    projections = ["gate_up_proj" if module.has_gate else "up_proj", "down_proj"]
    declared = {f"{each}{end}" for each in projections for end in ("", "_bias")[: 1 + module.has_bias]}
    held = expert_tensors(module)
    if module._is_expert_parallel or held.keys() != declared:
        raise ValueError(
            f"{name} ({type(module).__name__}) holds {sorted(held)}, where its experts interface declares "
            f"{sorted(declared)}: load the model whole and not quantised"
        )
    for each, tensor in held.items():
        if tensor.is_meta or tensor.dtype not in _DTYPES:
            raise ValueError(
                f"{name}.{each} is {tensor.dtype} on {tensor.device}: experts are computed in "
                f"{', '.join(map(str, _DTYPES))}, from weights that are loaded"
            )


def _sizes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in expert_tensors(module).items()}


def _top_k_of(model: PreTrainedModel, found: dict[str, torch.nn.Module]) -> int:
    """What the configuration says, or else the routers, which stand beside the experts."""
    top_k = getattr(model.config.get_text_config(), "num_experts_per_tok", None)
    for name in found:
        beside = (getattr(m, "top_k", None) for m in model.get_submodule(name.rpartition(".")[0]).modules())
        top_k = top_k or next((each for each in beside if isinstance(each, int)), None)
    if top_k is None:
        raise ValueError(
            f"neither the configuration nor the routers of {type(model).__name__} say how many experts a "
            "token chooses: give top_k="
        )
    return int(top_k)
