"""Small models of causal families with the experts interface, whole, on two ranks, against the stock model.

Many models are imported for it, so `make test-transformers` runs this and `make test` does not. Families that
make no small model of these sizes are left out. `test_families.py` has six families while weights move.
"""

import copy
import os

import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForCausalLM

from isotherm import Config, Topology
from isotherm.engines.transformers import parallelize
from ranks import run_ranks

if "ISOTHERM_TEST_LONG" not in os.environ:
    pytest.skip("long: make test-transformers runs this", allow_module_level=True)

EXPERTS = 8
SIZES = {
    **dict.fromkeys(("vocab_size", "max_position_embeddings"), 64),
    "hidden_size": 32,
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "index_n_heads"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), EXPERTS),
    **dict.fromkeys(("n_group", "topk_group", "num_shared_experts", "n_shared_experts"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim"), 8),
    **dict.fromkeys(("head_dim", "v_head_dim", "index_head_dim"), 16),
    "index_topk": 4,
    "first_k_dense_replace": 0,
    "decoder_sparse_step": 1,
    "pad_token_id": 0,
    **dict.fromkeys(("bos_token_id", "eos_token_id")),
}
"""What families call their sizes: each is given those that it knows."""
FAMILIES = [
    "afmoe", "axk2", "cohere2_moe", "deepseek_v2", "deepseek_v32", "deepseek_v4", "dots1",
    "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa",
    "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoeshared", "hunyuan_v1_moe", "hy_v3",
    "hy_v4", "kolibri1", "laguna", "mellum", "minimax", "minimax_m2", "mixtral", "nemotron_h",
    "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "solar_open",
]  # fmt: skip
TOPOLOGY = Topology.for_model(experts=EXPERTS, redundant=2, ranks=2)


def make_model(family):
    known = AutoConfig.for_model(family)
    config = AutoConfig.for_model(
        family, **{name: size for name, size in SIZES.items() if hasattr(known, name)}
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.dim() > 1:
            tensor.normal_(std=0.2)
    return model


@torch.inference_mode()
def one_family(family, rank):
    stock = make_model(family)
    model = copy.deepcopy(stock)
    ids = torch.randint(2, 60, (2, 9 + rank), generator=torch.Generator().manual_seed(rank))
    engine = parallelize(model, dist.group.WORLD, topology=TOPOLOGY, config=Config(mode="off"), inline=True)
    wanted, ours = stock(ids).logits, model(ids).logits
    sample = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    state, whole = engine.gather_state_dict(), stock.state_dict() if rank == 0 else {}
    seen = {
        "error": float((wanted - ours).abs().max() / wanted.std()),
        "generated": torch.equal(stock.generate(ids, **sample), model.generate(ids, **sample)),
        "state": list(state) == list(whole) and all(torch.equal(state[name], whole[name]) for name in whole),
    }
    engine.close()
    return seen


def every_family(rank):
    return {family: one_family(family, rank) for family in FAMILIES}


@pytest.mark.filterwarnings("default")  # code of many authors
@pytest.mark.timeout(900)
def test_whole_models_answer_as_stock_and_keep_their_weights(tmp_path):
    for seen in run_ranks(every_family, 2, tmp_path, timeout=800.0):
        for family, answers in seen.items():
            assert answers["error"] < 2e-5, family
            assert answers["generated"], family
            assert answers["state"], family
