"""Trains the model that `isotherm demo` runs: bytes in, bytes out, no auxiliary balancing loss.

    python examples/train_demo_model.py

It reads the text that the demo serves, so that its router learns to tell kinds of text apart, and it is
left as skewed as learning makes it. Needs `pip install 'isotherm[torch,transformers]'` and some minutes on
two cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

import isotherm as iso
from isotherm.demo.engine import MODEL
from isotherm.demo.text import Corpus, load_corpus
from isotherm.placement import rank_loads

BATCH, LENGTH = 32, 128
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 50


def make_config() -> Qwen3MoeConfig:
    return Qwen3MoeConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=64,
        moe_intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_experts=32,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        max_position_embeddings=1024,
        router_aux_loss_coef=0.0,
        output_router_logits=False,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )


def mixed_batch(corpus: Corpus, step: int, seed: int) -> torch.Tensor:
    """Half of each kind, int64 [sequences, length]."""
    kinds = len(corpus.kinds)
    parts = [
        corpus.batch(kind, step, 0, seed=seed, sequences=BATCH // kinds, length=LENGTH)
        for kind in range(kinds)
    ]
    return torch.from_numpy(np.concatenate(parts))


def train(corpus: Corpus, steps: int, seed: int) -> Qwen3MoeForCausalLM:
    torch.manual_seed(seed)
    model = Qwen3MoeForCausalLM(make_config())
    model.set_experts_implementation("grouped_mm")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    begun = time.monotonic()
    for step in range(steps):
        rate = min((step + 1) / WARM_UP_STEPS, 1.0) * (1 + np.cos(np.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        ids = mixed_batch(corpus, step, seed)
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step + 1 == steps:
            bits = loss.item() / np.log(2)
            seconds = time.monotonic() - begun
            print(f"step {step:5d}: {bits:.3f} bits per byte, {seconds:.0f} s", flush=True)
    return model.eval()


@torch.inference_mode()
def heat_of(model: Qwen3MoeForCausalLM, corpus: Corpus, kind: int, seed: int) -> np.ndarray:
    """Tokens per layer and expert in a step of 8 ranks, int64 [layers, experts]."""
    heats: list[torch.Tensor] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(
            lambda module, args, output: heats.append(output[2].flatten().bincount(minlength=32))
        )
        for layer in model.model.layers
    ]
    ids = corpus.batch(kind, seed, 0, seed=1000 + seed, sequences=64, length=LENGTH)
    model(input_ids=torch.from_numpy(ids))
    for hook in hooks:
        hook.remove()
    return torch.stack(heats).numpy()


@torch.inference_mode()
def bits_per_byte(model: Qwen3MoeForCausalLM, corpus: Corpus, kind: int) -> float:
    ids = torch.from_numpy(corpus.batch(kind, 0, 0, seed=999, sequences=64, length=LENGTH))
    return float(model(input_ids=ids, labels=ids).loss) / float(np.log(2))


def report(model: Qwen3MoeForCausalLM, corpus: Corpus) -> None:
    """Prints how skewed the model is, and what balancing could make of it."""
    topology = iso.Topology.for_model(experts=32, redundant=8, ranks=8)
    default = iso.Placement.default(iso.MoEShape(4, 32, 4), topology)
    print("kind       bits/byte  max/mean expert  imbalance loaded (10 seeds)  top expert")
    for kind, name in enumerate(corpus.kinds):
        heats = [heat_of(model, corpus, kind, seed) for seed in range(10)]
        loaded = [
            iso.overall_imbalance(rank_loads(heat, default, default.even_shares(), topology))
            for heat in heats
        ]
        total = np.sum(heats, axis=0)
        print(
            f"{name:10s} {bits_per_byte(model, corpus, kind):9.3f}  "
            f"{(total.max(1) / total.mean(1)).round(1).tolist()!s:>15s}  "
            f"{min(loaded):.3f} to {max(loaded):.3f}"
            f"{(total.max(1) / total.sum(1)).max():>20.1%}"
        )
    first, second = (heat_of(model, corpus, kind, 0).astype(float) for kind in (0, 1))
    cosine = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    print(f"cosine of the kinds' heat by layer: {cosine.round(2).tolist()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=MODEL, help="folder to write (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1300, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args()
    corpus = load_corpus()
    model = train(corpus, arguments.steps, arguments.seed)
    report(model, corpus)
    model.save_pretrained(arguments.out)
    (arguments.out / "generation_config.json").unlink()
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
