"""Experts as transformers' interface declares them: each variant is computed, and what is refused."""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.aria.modeling_aria import AriaExperts
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.muse_spark.modeling_muse_spark import MuseSparkExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from isotherm import IsothermError
from isotherm.engines.dispatch import TILE_ROWS
from isotherm.engines.transformers.experts import (
    expert_tensors,
    find_experts,
    moe_shape,
    slot_function,
    take_over,
)

WIDTHS = SimpleNamespace(
    **dict.fromkeys(("hidden_size", "moe_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    moe_latent_size=None,
    hidden_act="silu",
    mlp_hidden_act="relu2",
    post_norm_eps=1e-6,
    swiglu_alpha=1.702,
    swiglu_limit=0.7,
    _experts_implementation="eager",
)
VARIANTS = {
    "gate": Qwen3MoeExperts,
    "no gate": NemotronHExperts,
    "transposed": AriaExperts,
    "transposed, biases, interleaved and clamped gate": GptOssExperts,
    "norm behind": MuseSparkExperts,
}


def make_experts(variant):
    torch.manual_seed(0)
    module = VARIANTS[variant](WIDTHS)
    for tensor in module.parameters():
        torch.nn.init.normal_(tensor, std=0.4)
    return module


@pytest.mark.parametrize("variant", VARIANTS)
@torch.inference_mode()
def test_a_slot_computes_what_the_experts_own_forward_computes(variant):
    module = make_experts(variant)
    rows = torch.randn(3 * TILE_ROWS, 32)
    compute = slot_function(module)
    for expert in range(4):
        chosen = torch.full((len(rows), 1), expert)
        wanted = module(rows, chosen, torch.ones(len(rows), 1))
        ours = compute(rows.view(3, TILE_ROWS, -1), expert).view(len(rows), -1)
        assert wanted.std() > 0.1
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


def test_a_norm_that_all_experts_share_is_no_weight_of_an_expert():
    assert set(expert_tensors(make_experts("norm behind"))) == {"gate_up_proj", "down_proj"}


def make_model():
    config = Qwen3MoeConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
    )
    return Qwen3MoeForCausalLM(config)


def first_experts(model):
    return model.model.layers[0].mlp.experts


def narrow(model):
    first_experts(model).down_proj = torch.nn.Parameter(torch.zeros(4, 16, 9))


def quantise(model):
    first_experts(model).register_parameter("down_proj_scale_inv", torch.nn.Parameter(torch.ones(4)))


def shorten(model):
    weights = first_experts(model).down_proj.data.to(torch.float8_e4m3fn)
    first_experts(model).down_proj = torch.nn.Parameter(weights, requires_grad=False)


def spread(model):
    first_experts(model)._is_expert_parallel = True


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (narrow, r"layers\.1\.mlp\.experts are not like those of model\.layers\.0"),
        (quantise, r"holds \['down_proj', 'down_proj_scale_inv', 'gate_up_proj'\].*not quantised"),
        (shorten, r"down_proj is torch\.float8_e4m3fn on cpu"),
        (spread, "load the model whole"),
        (lambda model: model.to("meta"), r"on meta.*from weights that are loaded"),
    ],
)
def test_experts_that_would_be_computed_wrongly_are_refused(spoil, message):
    model = make_model()
    spoil(model)
    with pytest.raises(ValueError, match=message):
        find_experts(model)


def test_layers_of_two_parts_that_share_numbers_are_refused():
    model = make_model()
    model.vision = copy.deepcopy(model.model)
    with pytest.raises(ValueError, match="layers of different parts share numbers"):
        moe_shape(model)


def test_how_many_experts_a_token_chooses_is_read_or_given():
    model = make_model()
    assert moe_shape(model).top_k == 2
    assert moe_shape(model, top_k=1).top_k == 1
    object.__setattr__(model.config, "num_experts_per_tok", None)
    assert moe_shape(model).top_k == 2, "the routers say it"
    for layer in model.model.layers:
        del layer.mlp.gate.top_k
    with pytest.raises(ValueError, match="give top_k="):
        moe_shape(model)


def test_a_model_that_cannot_be_taken_over_is_refused(monkeypatch):
    model = make_model()
    monkeypatch.setattr(type(model), "_can_set_experts_implementation", classmethod(lambda model: False))
    with pytest.raises(
        ValueError, match="Qwen3MoeForCausalLM does not let the implementation of Qwen3MoeExp"
    ):
        take_over(model, find_experts(model).values())


def test_a_stock_model_that_shares_the_configuration_of_a_spread_one_says_so():
    model = make_model()
    stock = Qwen3MoeForCausalLM(model.config).eval()
    take_over(model, find_experts(model).values())
    with pytest.raises(IsothermError, match="a configuration of its own"):
        stock(torch.zeros((1, 2), dtype=torch.int64))
