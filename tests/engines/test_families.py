"""Every family of Transformers models, spread over two ranks and balanced, against the stock model.

All families share one start of two processes: a start costs more than a family.
"""

import copy
import os

import pytest
import torch
import torch.distributed as dist
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Glm4MoeConfig,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen3MoeConfig,
)

from isotherm import Config, Placement, Topology
from isotherm.engines.transformers import parallelize
from isotherm.engines.transformers.experts import find_experts
from ranks import run_ranks

pytestmark = pytest.mark.timeout(320)  # six models in one start: much at once on a loaded machine

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "eos_token_id": None,
}
DEEPSEEK = {
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 3,
    "n_group": 2,
    "topk_group": 1,
}
LATENT = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
FAMILIES = {
    "qwen3_moe": Qwen3MoeConfig(**SMALL, moe_intermediate_size=24, num_experts=8, head_dim=16),
    "mixtral": MixtralConfig(**SMALL, num_local_experts=8),
    "deepseek_v3": DeepseekV3Config(**SMALL | DEEPSEEK | LATENT),
    "gpt_oss": GptOssConfig(
        **SMALL, num_local_experts=8, head_dim=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "olmoe": OlmoeConfig(**SMALL, num_experts=8),
    "glm4_moe": Glm4MoeConfig(**SMALL | DEEPSEEK, head_dim=16),
}
TOPOLOGY = Topology.for_model(experts=8, redundant=2, ranks=2)
NEW_TOKENS = 4
PADDING = 3
TOLERANCE = 2e-5
"""Logits have a spread of about 1; sums are made in another order than the stock model's."""


def make_model(family, seed=0):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[family])).eval()
    for name, tensor in model.state_dict().items():
        # Biases, of experts and of routers, are zero in a new model; norms stay.
        if tensor.dim() > 1 or "bias" in name:
            tensor.normal_(std=0.2)
    return model


def make_ids(rank):
    """Few distinct tokens: skewed heat."""
    return torch.randint(8, 14, (2, 9 + rank), generator=torch.Generator().manual_seed(rank))


def generate(model, ids):
    return model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0)


def embedded(model, stock, ids):
    """How far logits are from stock's where embeddings are given, with padding on the left."""
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    wanted = stock(ids, attention_mask=mask).logits
    ours = model(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask).logits
    return float((wanted - ours)[mask.bool()].abs().max())


def same_tensors(state, wanted):
    return list(state) == list(wanted) and all(torch.equal(state[name], wanted[name]) for name in wanted)


def pointers(model):
    return {name: tensor.data_ptr() for name, tensor in model.named_parameters() if ".experts." not in name}


def worst_placement(stock):
    """The five experts that the batches of both ranks choose most are on rank 0, so that no share can balance
    the ranks; the others are on rank 1, the two coldest twice."""
    heats = []

    def note(module, args):
        heats.append(torch.bincount(args[1].reshape(-1), minlength=8))

    experts = find_experts(stock).values()
    handles = [module.register_forward_pre_hook(note) for module in experts]
    for rank in range(2):
        stock(make_ids(rank))
    for handle in handles:
        handle.remove()
    order_LE = torch.stack(heats).view(2, len(experts), 8).sum(0).argsort(dim=1, descending=True, stable=True)
    return Placement([[*order, *order[-2:]] for order in order_LE.tolist()], 8)


@torch.inference_mode()
def one_family(family, rank, folder):
    stock, model, ids = make_model(family), make_model(family), make_ids(rank)
    elsewhere = pointers(model)
    engine = parallelize(
        model,
        dist.group.WORLD,
        topology=TOPOLOGY,
        placement=worst_placement(stock),
        config=Config(mode="off", window_steps=2, slices=1, min_gain=0.0, confidence=0.0),
        inline=True,
    )
    seen = {"untouched": pointers(model) == elsewhere}
    wanted, off = stock(ids).logits, model(ids).logits
    seen["spread"] = float(wanted.std())
    seen["error"] = float((wanted - off).abs().max())
    engine.balancer.set_mode("full")
    seen["on"] = [torch.equal(model(ids).logits, off) for _ in range(12)]
    seen["moves"] = engine.balancer.statistics().moves
    seen["generated"] = torch.equal(generate(model, ids), generate(stock, ids))
    state = engine.gather_state_dict()
    seen["state"] = same_tensors(state, stock.state_dict() if rank == 0 else {})
    engine.save_pretrained(f"{folder}/{family}")
    saved = AutoModelForCausalLM.from_pretrained(f"{folder}/{family}", dtype=torch.float32)
    seen["saved"] = same_tensors(saved.state_dict(), stock.state_dict())
    other = make_model(family, seed=1)
    engine.load_state_dict(other.state_dict())
    seen["reloaded"] = float((other(ids).logits - model(ids).logits).abs().max())
    seen["replicas"] = engine.balancer.check_replicas()
    engine.meter.reset()
    seen["embedded"] = embedded(model, other, ids)
    seen["received"] = list(engine.meter.received_L)
    lengths = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": 3 + 2 * rank}
    seen["synced"] = torch.equal(
        model.generate(ids, **lengths, synced_gpus=True), other.generate(ids, **lengths)
    )
    engine.close()
    return seen


def all_families(rank, folder):
    return {family: one_family(family, rank, folder) for family in FAMILIES}


def check_family(seen):
    assert seen["spread"] > 0.5
    assert seen["error"] < TOLERANCE
    assert seen["moves"] > 0
    assert all(seen["on"]), "logits with balancing on differ from those with balancing off"
    assert seen["generated"]
    assert seen["synced"], "ranks that generate different numbers of tokens"
    assert seen["embedded"] < TOLERANCE
    assert seen["untouched"], "shared experts, attention and norms are the model's own"
    assert seen["state"]
    assert seen["saved"]
    assert seen["reloaded"] < TOLERANCE
    assert seen["replicas"] == ()


def test_families_answer_as_stock_while_weights_move_and_keep_their_weights(tmp_path):
    """One test, since tests that share processes may be run by two workers, which would start them twice."""
    saved = tmp_path / "saved"
    ranks = run_ranks(all_families, 2, tmp_path, str(saved), timeout=300.0)
    for family in FAMILIES:
        for seen in (rank[family] for rank in ranks):
            print(family, seen)
            check_family(seen)
        # Both ranks' rows but for the padding, two experts each.
        received_LG = zip(*(rank[family]["received"] for rank in ranks), strict=True)
        assert {sum(pairs) for pairs in received_LG} == {2 * (2 * 9 + 2 * 10 - 2 * PADDING)}


@torch.inference_mode()
def compiled(rank):
    stock, model, ids = make_model("qwen3_moe"), make_model("qwen3_moe"), make_ids(rank)
    config = Config(mode="off", window_steps=2, slices=1, min_gain=0.0, confidence=0.0)
    placement = worst_placement(stock)
    engine = parallelize(
        model, dist.group.WORLD, topology=TOPOLOGY, placement=placement, config=config, inline=True
    )
    calls = torch.compile(engine.model)
    off = calls(ids).logits
    error = float((stock(ids).logits - off).abs().max())
    engine.balancer.set_mode("full")
    on = [torch.equal(calls(ids).logits, off) for _ in range(12)]
    statistics = engine.balancer.statistics()
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    engine.close()
    return error, on, statistics.moves, statistics.steps, graphs


@pytest.mark.skipif("ISOTHERM_TEST_LONG" not in os.environ, reason="long: make test-transformers runs this")
@pytest.mark.timeout(900)
def test_what_lies_between_the_moe_layers_is_compiled(tmp_path):
    for error, on, moves, steps, graphs in run_ranks(compiled, 2, tmp_path, timeout=800.0):
        assert error < TOLERANCE
        assert all(on)
        assert moves > 0
        assert steps == 13
        assert graphs >= 1 + FAMILIES["qwen3_moe"].num_hidden_layers
