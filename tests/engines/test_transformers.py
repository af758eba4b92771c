"""Transformers models made expert-parallel, in real processes over gloo, against the stock model."""

import copy
from functools import partial

import pytest
import torch
import torch.distributed as dist
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from isotherm import Config, Placement, Topology
from isotherm.engines.dispatch import TILE_ROWS, _compute, dispatch_tokens
from isotherm.engines.transformers import moe_shape, parallelize
from isotherm.engines.transformers.experts import find_experts
from isotherm.errors import IsothermError
from ranks import run_ranks

CONFIG = Qwen3MoeConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=32,
    moe_intermediate_size=24,
    num_hidden_layers=3,
    mlp_only_layers=[1],
    decoder_sparse_step=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    num_experts=8,
    num_experts_per_tok=3,
    norm_topk_prob=True,
)
TOPOLOGY = Topology.for_model(experts=8, redundant=2, ranks=2)


def make_model():
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(copy.deepcopy(CONFIG)).eval()
    for module in model.modules():
        if hasattr(module, "gate_up_proj"):
            torch.nn.init.normal_(module.gate_up_proj, std=0.3)
            torch.nn.init.normal_(module.down_proj, std=0.3)
    return model


def make_ids(rank, step):
    generator = torch.Generator().manual_seed(100 * step + rank)
    # Few distinct tokens, and others after a while: skewed heat that shifts.
    first = 8 if step < 20 else 40
    return torch.randint(first, first + 6, (2, 17 + rank), generator=generator)


class Chosen:
    """Counts the experts that the rows of each call choose, but for those that ``mask`` marks 0."""

    def __init__(self, model):
        self.counts_KLE = torch.zeros((2, 2, 8), dtype=torch.int64)
        self.mask = None
        for layer, module in enumerate(find_experts(model).values()):
            module.register_forward_pre_hook(partial(self.note, layer))

    def note(self, layer, module, args):
        ids_TK = args[1]
        kind = int(len(ids_TK) == 2)  # a decode step has one token of each of the two sequences
        real_TK = ids_TK if self.mask is None else ids_TK[self.mask.reshape(-1).bool()]
        self.counts_KLE[kind, layer] += torch.bincount(real_TK.reshape(-1), minlength=8)


def against_stock(rank):
    stock, model = make_model(), make_model()
    engine = parallelize(model, dist.group.WORLD, topology=TOPOLOGY, config=Config(window_steps=4))
    chosen = Chosen(model)
    ids = make_ids(rank, 0)
    with torch.inference_mode():
        wanted, ours = stock(ids).logits, model(ids).logits
        error = float((wanted - ours).abs().max())
        sample = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        same = torch.equal(stock.generate(ids, **sample), model.generate(ids, **sample))
        engine.meter.reset()
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        chosen.mask = mask
        wanted = stock(ids, attention_mask=mask).logits
        ours = model(ids, attention_mask=mask).logits
        padded = float((wanted - ours)[mask.bool()].abs().max())
    chosen.mask = torch.zeros(1)
    engine.dummy_step()
    result = {
        "error": error,
        "same": same,
        "padded": padded,
        "steps": engine.balancer.statistics().steps,
        "heat": engine.balancer._collector.totals.heat_MKLE[0].equal(chosen.counts_KLE.int()),
        "tokens": engine.balancer._collector._tokens_K,
        "received": engine.meter.received_L,
    }
    engine.close()
    return result


def test_logits_generation_padding_and_counts_against_stock(ranks):
    results = [result for result, *_ in ranks]
    sizes = [2 * 17, 2 * 18]
    for seen, size in zip(results, sizes, strict=True):
        assert seen["error"] < 1e-5
        assert seen["padded"] < 1e-5
        assert seen["same"]
        assert seen["steps"] == 1 + 6 + 1 + 1
        assert seen["tokens"] == [size + size + (size - 5), 5 * 2]
        assert seen["heat"], "what real tokens chose, and nothing else"
    # Real tokens choose three experts each, and the one token of each dummy step is computed, not counted.
    received_L = [sum(pairs) for pairs in zip(*(seen["received"] for seen in results), strict=True)]
    assert received_L == [3 * (sum(sizes) - 2 * 5 + 2)] * 2


def sums_of_bfloat16_rows(rank):
    """What a layer adds up where rows are bfloat16 and weights float32, and what it should: experts here give
    back what they get."""
    generator = torch.Generator().manual_seed(rank)
    hidden_TH = torch.randn(20, 8, generator=generator).bfloat16()
    weights_TK = torch.rand(20, 3, generator=generator)
    slots_TK = torch.randint(0, 10, (20, 3), generator=generator)
    done, alone = (
        dispatch_tokens(
            hidden_TH[:tokens], slots_TK[:tokens], weights_TK[:tokens], lambda tiles, slot: tiles,
            ranks=2, slots_per_rank=5, group=dist.group.WORLD,
        )
        for tokens in (20, 20 * rank)
    )  # fmt: skip
    wanted_TH = sum(hidden_TH.float() * weights_TK[:, choice, None] for choice in range(3))
    return done.output, wanted_TH.bfloat16(), alone.output


def test_results_are_added_in_the_wider_dtype(ranks):
    for _, _, (output, wanted, _), _ in ranks:
        assert output.dtype == torch.bfloat16
        assert output.equal(wanted)


def test_a_rank_without_tokens_computes_those_of_others(ranks):
    (*_, (*_, nothing), _), (*_, (_, wanted, alone), _) = ranks
    assert nothing.shape == (0, 8)
    assert alone.equal(wanted)


# The hot experts stand alone on rank 0, so that no share can balance the ranks.
LOPSIDED = Placement([[0, 2, 5, 6, 7, 1, 3, 4, 3, 4], [0, 1, 2, 6, 7, 3, 4, 5, 3, 4]], 8)


def run_mode(rank, mode):
    config = Config(mode=mode, window_steps=4, min_gain=0.005, heartbeat_seconds=0.002)
    engine = parallelize(make_model(), dist.group.WORLD, topology=TOPOLOGY, config=config, placement=LOPSIDED)
    logits = []
    with torch.inference_mode():
        for step in range(40):
            logits.append(engine.model(make_ids(rank, step)).logits)
            while mode == "full" and engine.balancer.statistics().gathered_step < step // 2 * 2:
                pass
    statistics = engine.balancer.statistics()
    engine.close()
    return logits, statistics


def on_and_off(rank):
    on, statistics = run_mode(rank, "full")
    off, _ = run_mode(rank, "off")
    return all(map(torch.equal, on, off)), statistics


def raised(function, *args, **kwargs):
    with pytest.raises((ValueError, IsothermError)) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def misused(rank):
    """What is said where a model is spread, loaded, called or trained otherwise than it can be, and that it
    answers as stock afterwards."""
    stock, model, ids = make_model(), make_model(), make_ids(rank, 0)
    four = Topology.for_model(experts=8, redundant=4, ranks=4)
    said = {"ranks": raised(parallelize, model, dist.group.WORLD, topology=four)}
    other = Placement([[0, 1, 2, 3, 4, 5, 6, 7]] * 2, 8)
    said["slots"] = raised(parallelize, model, dist.group.WORLD, topology=TOPOLOGY, placement=other)
    engine = parallelize(model, dist.group.WORLD, topology=TOPOLOGY)  # nothing of it was cut before
    said["twice"] = raised(parallelize, model, dist.group.WORLD, topology=TOPOLOGY)
    state = make_model().state_dict()
    state["lm_head.weight"] += 1.0
    name = next(name for name in state if name.endswith("gate_up_proj"))
    said["shape"] = raised(engine.load_state_dict, {**state, name: state[name][:4]})
    said["nothing"] = raised(model)
    loss = model(ids).logits.sum()
    said["backward"] = raised(loss.backward)
    with torch.inference_mode():
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        before = engine.balancer._collector._tokens_K[0]
        model(ids, mask)
        counted = engine.balancer._collector._tokens_K[0] - before
        part = (model.model(ids).last_hidden_state - stock.model(ids).last_hidden_state).abs().max()
        error = (model(ids).logits - stock(ids).logits).abs().max()
    engine.close()
    return said, counted, float(part), float(error)


def test_what_cannot_be_is_refused_before_it_does_harm(ranks):
    for *_, (said, counted, part, error) in ranks:
        assert "the group has 2 ranks, the topology 4" in said["ranks"]
        assert "the shape and topology need (2, 10)" in said["slots"]
        assert "was parallelized before" in said["twice"]
        assert "gate_up_proj has shape (4, 48, 32), in the stock model (8, 48, 32)" in said["shape"]
        assert "input_ids or inputs_embeds" in said["nothing"], "the model's own words"
        assert "have no gradients" in said["backward"]
        assert counted in (2 * 17 - 5, 2 * 18 - 5), "padding of a mask that is given by place"
        assert part < 1e-5, "a part of the model called by itself, after a batch with padding"
        assert error < 1e-5


def all_of_these(rank):
    return against_stock(rank), on_and_off(rank), sums_of_bfloat16_rows(rank), misused(rank)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """One start of two processes for all: it costs more than they do."""
    return run_ranks(all_of_these, 2, tmp_path_factory.mktemp("ranks"))


def test_every_logit_is_equal_bit_for_bit_with_balancing_on_and_off(ranks):
    for _, (equal, statistics), *_ in ranks:
        assert equal
        assert statistics.moves > 0
        assert statistics.waits == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_row_is_computed_alike_wherever_it_stands(dtype):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(400, 48, generator=generator).to(dtype)
    weights = torch.randn(3, 48, 48, generator=generator).to(dtype)

    def experts(tiles, slot):
        assert tiles.shape[1] == TILE_ROWS
        return torch.bmm(tiles, weights[slot].expand(len(tiles), -1, -1))

    everywhere = torch.stack([_compute(rows, one_slot(400, slot), experts) for slot in range(3)])
    for _ in range(30):
        counts_GS = torch.randint(0, 40, (4, 3), generator=generator)
        chosen = torch.randint(0, 400, (int(counts_GS.sum()),), generator=generator)
        slots = torch.repeat_interleave(torch.arange(3).repeat(4), counts_GS.reshape(-1))
        assert torch.equal(_compute(rows[chosen], counts_GS, experts), everywhere[slots, chosen])


def one_slot(rows, slot):
    counts_GS = torch.zeros((1, 3), dtype=torch.int64)
    counts_GS[0, slot] = rows
    return counts_GS


def test_layers_keep_the_models_own_numbers():
    shape = moe_shape(make_model())
    assert (shape.layers, shape.experts, shape.top_k, shape.ids) == (2, 8, 3, (0, 2))


def test_a_model_without_experts_is_refused():
    config = Qwen3Config(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    with pytest.raises(ValueError, match="Qwen3ForCausalLM has no MoE layer"):
        moe_shape(Qwen3ForCausalLM(config))
